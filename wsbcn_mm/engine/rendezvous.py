"""Agree on a free port, and on how many there are, among ranks without an agent above them such as torchrun's."""

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
