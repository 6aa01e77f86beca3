"""What srun tells its tasks, read for torch.distributed."""

import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Thread

from torch.distributed import DistNetworkError, DistStoreError, TCPStore

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


PATIENCE = 2.0
"""Seconds for one question and its answer."""


def open_store(ports: Sequence[int], job: str, world_size: int) -> TCPStore:
    """Rank 0's part: a store at a port that the system finds free, told to who asks at the first free one of `ports`.

    Within this process torch's own rendezvous shares the store, so the port stays its as long as the store lives.

    Args:
        ports: Candidates, the same on all ranks.
        job: Name without spaces that no other job on this host has.
        world_size: Number of ranks; the others each ask once.

    Raises:
        ValueError: If all of `ports` are taken.
    """
    for port in ports:
        with suppress(OSError):
            server = socket.create_server(('', port))
            break
    else:
        listed = ', '.join(map(str, ports))
        raise ValueError(f'ports {listed} of this host are all taken: set MASTER_PORT to a free one')
    store = TCPStore('localhost', 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    Thread(target=_answer, args=(server, job, store.port, world_size), daemon=True).start()
    return store


def _answer(server: socket.socket, job: str, port: int, world_size: int) -> None:
    """Tell every other rank of the job the port; ranks of other jobs, and whoever says nothing, are turned away."""
    unanswered = set(range(1, world_size))
    with server:
        while unanswered:
            connection, _ = server.accept()
            with connection, suppress(OSError, ValueError):
                connection.settimeout(PATIENCE)
                name, rank = connection.makefile().readline().split()
                if name == job:
                    connection.sendall(f'{name} {port}\n'.encode())
                    unanswered.discard(int(rank))


def find_store(host: str, ports: Sequence[int], job: str, rank: int, *, timeout: float = 600) -> int:
    """The other ranks' part: the port of rank 0's store, asked for at each of `ports` until the job's own answers.

    Args:
        host: Where rank 0 runs.
        ports: As given to `open_store`.
        job: As given to `open_store`.
        rank: Of this process, above 0.
        timeout: Seconds to look for rank 0.

    Raises:
        ValueError: If it is at none of them in time.
    """
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for port in ports:
            with suppress(OSError, ValueError), socket.create_connection((host, port), PATIENCE) as connection:
                connection.sendall(f'{job} {rank}\n'.encode())
                name, found = connection.makefile().readline().split()
                if name == job:
                    return int(found)
        time.sleep(0.1)
    listed = ', '.join(map(str, ports))
    raise ValueError(f'rank 0 of job {job} is at none of the ports {listed} of {host}: is it running?')


def same_world(host: str, port: int, rank: int, world_size: int, timeout: timedelta) -> TCPStore:
    """Let ranks whose environment was set by hand tell each other how many they take themselves to be.

    torch would let those that disagree wait for each other until `timeout`, and then name a key of its store.

    Args:
        host, port: Where rank 0 listens.
        rank, world_size: As this rank knows them.
        timeout: How long to wait for the others.

    Returns:
        The store, to be kept until the process group is there.

    Raises:
        ValueError: If rank 0 cannot listen, or a rank is missing, ends, or has another `world_size`.
    """
    try:
        store = TCPStore(host, port, is_master=rank == 0, timeout=timeout, wait_for_workers=False, multi_tenant=True)
        store.set(f'WORLD_SIZE of rank {rank}', str(world_size))
    except DistNetworkError as error:
        what = 'rank 0 cannot listen at it, set it to a free one' if rank == 0 else 'rank 0 is not there'
        raise ValueError(f'MASTER_ADDR={host}, MASTER_PORT={port}: {what} ({error})') from None
    for other in range(1, world_size) if rank == 0 else [0]:
        try:
            theirs = int(store.get(f'WORLD_SIZE of rank {other}'))
        except DistStoreError:
            raise ValueError(
                f'rank {other} of WORLD_SIZE={world_size} did not come to {host}:{port} in {timeout}: is it running?'
            ) from None
        except DistNetworkError:
            raise ValueError(f'rank {other} ended before the others came: it says why') from None
        if theirs != world_size:
            raise ValueError(
                f'rank {rank} has WORLD_SIZE={world_size}, rank {other} has WORLD_SIZE={theirs}: start all processes '
                'of a run with the same (torchrun sets it)'
            )
    return store
