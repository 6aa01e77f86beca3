"""Let the ranks of a job find each other over TCP, before torch.distributed starts."""

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Thread

from torch.distributed import DistNetworkError, DistStoreError, TCPStore

PATIENCE = 2.0
"""Seconds for one question and its answer."""


def open_store(ports: Sequence[int], job: str, world_size: int) -> TCPStore:
    """Open rank 0's store at a port that the system chooses, and announce it at the first free one of `ports`.

    torch's own rendezvous in this process shares the store. The store keeps the port for as long as it lives.

    Args:
        ports: Candidates, the same on all ranks.
        job: Name of the job, without spaces, unique on this host.
        world_size: Number of ranks. Each of the others asks once.

    Raises:
        ValueError: If all of `ports` are in use.
    """
    for port in ports:
        with suppress(OSError):
            server = socket.create_server(('', port))
            break
    else:
        listed = ', '.join(map(str, ports))
        raise ValueError(f'ports {listed} of this host are all in use: set MASTER_PORT to a free one')
    store = TCPStore('localhost', 0, is_master=True, wait_for_workers=False, multi_tenant=True)
    Thread(target=_answer, args=(server, job, store.port, world_size), daemon=True).start()
    return store


def find_store(host: str, ports: Sequence[int], job: str, rank: int, *, timeout: float = 600) -> int:
    """Return the port of rank 0's store. Ranks other than 0 ask at each of `ports` until rank 0 of their job answers.

    Args:
        host: Where rank 0 runs.
        ports: As given to `open_store`.
        job: As given to `open_store`.
        rank: Rank of this process, above 0.
        timeout: Seconds to look for rank 0.

    Raises:
        ValueError: If rank 0 does not answer in time.
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
    raise ValueError(f'rank 0 of job {job} does not answer at ports {listed} of {host}: check that it is running')


def same_world(host: str, port: int, rank: int, world_size: int, timeout: timedelta) -> TCPStore:
    """Check that ranks whose environment was set by hand agree on the world size.

    Without this check, torch makes ranks that disagree wait until `timeout`. Its error then names a key of its store.

    Args:
        host, port: Where rank 0 listens.
        rank, world_size: Values of this rank.
        timeout: How long to wait for the other ranks.

    Returns:
        The store. Keep it until the process group exists.

    Raises:
        ValueError: If rank 0 cannot listen, or a rank is missing, exits, or has another `world_size`.
    """
    try:
        store = TCPStore(host, port, is_master=rank == 0, timeout=timeout, wait_for_workers=False, multi_tenant=True)
        store.set(f'WORLD_SIZE of rank {rank}', str(world_size))
    except DistNetworkError as error:
        what = 'rank 0 cannot listen at this port, choose a free one' if rank == 0 else 'rank 0 does not answer'
        raise ValueError(f'MASTER_ADDR={host}, MASTER_PORT={port}: {what} ({error})') from None
    for other in range(1, world_size) if rank == 0 else [0]:
        try:
            theirs = int(store.get(f'WORLD_SIZE of rank {other}'))
        except DistStoreError:
            raise ValueError(
                f'rank {other} of WORLD_SIZE={world_size} did not connect to {host}:{port} within {timeout}: check '
                'that it is running'
            ) from None
        except DistNetworkError:
            raise ValueError(f'rank {other} exited before all ranks connected: see its output') from None
        if theirs != world_size:
            raise ValueError(
                f'rank {rank} has WORLD_SIZE={world_size}, rank {other} has WORLD_SIZE={theirs}: start all processes '
                'of a run with the same value (torchrun sets it)'
            )
    return store


def _answer(server: socket.socket, job: str, port: int, world_size: int) -> None:
    """Send the port to every other rank of the job. Reject ranks of other jobs and connections that send nothing."""
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
