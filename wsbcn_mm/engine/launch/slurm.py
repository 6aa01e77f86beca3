"""Translate the environment variables of an srun task into those of torchrun."""

import re
from collections.abc import Mapping

RESERVED_STEPS = 0xFFFFFFF0
"""First step number that Slurm reserves for other uses than srun: batch scripts, shells of interactive allocations."""

PORTS, LOWEST_PORT, APART, CANDIDATES = 20_000, 10_000, 7_919, 4
"""Candidate ports: size and start of their range, distance between the candidates of one step, and their number."""


def slurm_to_torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that torchrun would set, derived from those that srun sets.

    MASTER_PORT is the first of `ports_of`. Existing values of MASTER_ADDR and MASTER_PORT are kept.

    Raises:
        ValueError: If `environ` lacks variables of an srun task.
    """
    missing = [name for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID') if name not in environ]
    nodes = environ.get('SLURM_STEP_NODELIST') or environ.get('SLURM_NODELIST') or environ.get('SLURM_JOB_NODELIST')
    if missing or not nodes:
        raise ValueError(
            f"launcher='slurm' needs the variables of an srun task; missing: {', '.join(missing) or 'SLURM_NODELIST'}. "
            'Start with tools/slurm_train.sh, or use --launcher pytorch under torchrun'
        )
    return {
        'RANK': environ['SLURM_PROCID'],
        'WORLD_SIZE': environ.get('SLURM_STEP_NUM_TASKS') or environ['SLURM_NTASKS'],
        'LOCAL_RANK': environ['SLURM_LOCALID'],
        'LOCAL_WORLD_SIZE': str(tasks_of_node(environ)),
        'MASTER_ADDR': environ.get('MASTER_ADDR', first_host(nodes)),
        'MASTER_PORT': environ.get('MASTER_PORT', str(ports_of(environ)[0])),
    }


def tasks_of_srun(environ: Mapping[str, str]) -> int:
    """Return the number of tasks of the srun step that this process belongs to; 0 outside an srun step.

    The shell of `salloc` and the script of `sbatch` also have most of Slurm's variables, including a rank, but they do
    not run in a step of srun.
    """
    step = environ.get('SLURM_STEP_ID') or environ.get('SLURM_STEPID')
    if 'SLURM_PROCID' not in environ or step is None or int(step) >= RESERVED_STEPS:
        return 0
    return int(environ.get('SLURM_STEP_NUM_TASKS') or environ.get('SLURM_NTASKS') or 1)


def tasks_of_node(environ: Mapping[str, str]) -> int:
    """Return the number of this step's tasks on this node.

    Slurm lists tasks per node as '4(x2),1': 4 on each of two nodes, 1 on the third.
    """
    listed = environ.get('SLURM_STEP_TASKS_PER_NODE') or environ.get('SLURM_TASKS_PER_NODE') or '1'
    found = re.findall(r'(\d+)(?:\(x(\d+)\))?', listed)
    tasks = [int(count) for count, nodes in found for _ in range(int(nodes or 1))]
    return tasks[int(environ.get('SLURM_NODEID') or 0)]


def job_and_step(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the Slurm job id and step id; 0 for one that is not set."""
    job = int(environ.get('SLURM_JOB_ID') or environ.get('SLURM_JOBID') or 0)
    return job, int(environ.get('SLURM_STEP_ID') or environ.get('SLURM_STEPID') or 0)


def ports_of(environ: Mapping[str, str]) -> list[int]:
    """Return the candidate ports for the rendezvous of this step, in the order in which to try them.

    They are derived from the job and step ids: all ranks know them, and two jobs on one host get different ones. They
    are below the ephemeral ports.
    """
    job, step = job_and_step(environ)
    return [LOWEST_PORT + (32 * job + step + APART * number) % PORTS for number in range(CANDIDATES)]


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list.

    'gpu[03-05,9],cpu1' gives 'gpu03', 'rack[2-3]node[1-4]-ib' gives 'rack2node1-ib'.

    Raises:
        ValueError: If the list contains no host.
    """
    match = re.match(r'(?:[^,\[\]]|\[\w[^\]]*\])+', nodes)
    if match is None:
        raise ValueError(f'SLURM_NODELIST={nodes!r}: a list of host names is expected')
    return re.sub(r'\[(\w+)[^\]]*\]', r'\1', match[0])
