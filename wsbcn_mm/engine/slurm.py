"""What srun tells its tasks, read for torch.distributed."""

import re
from collections.abc import Mapping

RESERVED_STEPS = 0xFFFFFFF0
"""Slurm's step numbers from here on are no steps of srun: the batch script, the shell of an interactive allocation."""
PORTS, LOWEST_PORT, APART, CANDIDATES = 20_000, 10_000, 7_919, 4


def tasks_of_srun(environ: Mapping[str, str]) -> int:
    """Number of tasks of the srun step this process belongs to; 0 outside one.

    The shell of `salloc` and the script of `sbatch` have most of Slurm's variables too, a rank among them, but no step
    of srun's.
    """
    step = environ.get('SLURM_STEP_ID') or environ.get('SLURM_STEPID')
    if 'SLURM_PROCID' not in environ or step is None or int(step) >= RESERVED_STEPS:
        return 0
    return int(environ.get('SLURM_STEP_NUM_TASKS') or environ.get('SLURM_NTASKS') or 1)


def slurm_to_torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables torchrun would set, from those srun sets.

    MASTER_PORT is the first of `ports_of`; MASTER_ADDR and MASTER_PORT that are set already stay.

    Raises:
        ValueError: If `environ` is not that of an srun task.
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


def tasks_of_node(environ: Mapping[str, str]) -> int:
    """Tasks of this step on this node, by a list such as '4(x2),1': 4 on each of two nodes, 1 on the third."""
    listed = environ.get('SLURM_STEP_TASKS_PER_NODE') or environ.get('SLURM_TASKS_PER_NODE') or '1'
    found = re.findall(r'(\d+)(?:\(x(\d+)\))?', listed)
    tasks = [int(count) for count, nodes in found for _ in range(int(nodes or 1))]
    return tasks[int(environ.get('SLURM_NODEID') or 0)]


def job_and_step(environ: Mapping[str, str]) -> tuple[int, int]:
    job = int(environ.get('SLURM_JOB_ID') or environ.get('SLURM_JOBID') or 0)
    return job, int(environ.get('SLURM_STEP_ID') or environ.get('SLURM_STEPID') or 0)


def ports_of(environ: Mapping[str, str]) -> list[int]:
    """Ports for the ranks of this step to meet at, in the order in which to try them; below the ephemeral ones.

    They come from the job and step ids, so that all ranks know them and two jobs on one host have others.
    """
    job, step = job_and_step(environ)
    return [LOWEST_PORT + (32 * job + step + APART * number) % PORTS for number in range(CANDIDATES)]


def first_host(nodes: str) -> str:
    """First host of a Slurm node list: 'gpu[03-05,9],cpu1' -> 'gpu03', 'rack[2-3]node[1-4]-ib' -> 'rack2node1-ib'."""
    match = re.match(r'(?:[^,\[\]]|\[\w[^\]]*\])+', nodes)
    if match is None:
        raise ValueError(f'SLURM_NODELIST={nodes!r} names no host')
    return re.sub(r'\[(\w+)[^\]]*\]', r'\1', match[0])
