"""Ranks of a job agree on a free port, even if other servers listen at the first candidates."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from wsbcn_mm.engine.launch import rendezvous
from wsbcn_mm.engine.launch.rendezvous import find_store, open_store, same_world


@pytest.fixture
def listening():
    """Four ports; a server that never sends anything listens at the first."""
    with socket.create_server(('', 0)) as silent:
        first = silent.getsockname()[1]
        free = []
        for _ in range(3):
            with socket.socket() as probe:
                probe.bind(('', 0))
                free.append(probe.getsockname()[1])
        yield [first, *free]


def test_two_jobs_that_look_at_the_same_ports_each_find_their_own(listening, monkeypatch):
    monkeypatch.setattr(rendezvous, 'PATIENCE', 0.3)
    jobs = ('7.0', '8.0')
    with ThreadPoolExecutor() as pool:
        # Two of the other ranks ask before anybody can answer.
        early = {job: pool.submit(find_store, 'localhost', listening, job, 1, timeout=60) for job in jobs}
        stores = {job: open_store(listening, job, 3) for job in jobs}
        late = {job: pool.submit(find_store, 'localhost', listening, job, 2, timeout=60) for job in jobs}
        found = {job: {early[job].result(60), late[job].result(60)} for job in jobs}
    assert found == {job: {store.port} for job, store in stores.items()}
    assert stores['7.0'].port != stores['8.0'].port


def test_the_store_is_shared_with_a_second_one_of_its_process_and_reached_by_others(listening):
    store = open_store(listening, '7.0', 2)
    again = TCPStore('localhost', store.port, is_master=True, wait_for_workers=False, multi_tenant=True)
    port = find_store('localhost', listening, '7.0', 1, timeout=60)
    other = TCPStore('localhost', port, is_master=False, wait_for_workers=False)
    again.set('said', 'once')
    assert other.get('said') == b'once'


def test_ports_in_use_are_named(listening):
    message = f'ports {listening[0]} of this host are all in use: set MASTER_PORT to a free one'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        open_store(listening[:1], '7.0', 2)


def test_a_missing_rank_0_is_reported(listening):
    message = (
        f'rank 0 of job 7.0 does not answer at ports {listening[1]}, {listening[2]} of localhost: check that it is '
        'running'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        find_store('localhost', listening[1:3], '7.0', 1, timeout=0.2)


def same_worlds(port, *sizes, timeout=20):
    """Run one thread per rank with these WORLD_SIZEs; return each rank's store or the text of its error."""

    def rank(number):
        try:
            return same_world('127.0.0.1', port, number, sizes[number], timedelta(seconds=timeout))
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(rank, range(len(sizes))))


def test_ranks_of_one_world_agree(listening):
    assert all(isinstance(store, TCPStore) for store in same_worlds(listening[1], 2, 2))


@pytest.mark.parametrize('sizes', [(2, 3), (3, 2)])
def test_ranks_of_different_worlds_fail_at_once(sizes, listening):
    mine, theirs = sizes
    message = (
        'rank {} has WORLD_SIZE={}, rank {} has WORLD_SIZE={}: start all processes of a run with the same value {}'
    )
    first, second = same_worlds(listening[1], *sizes)
    assert first == message.format(0, mine, 1, theirs, '(torchrun sets it)')
    # Rank 0 may have exited, and its store with it, before rank 1 asks.
    gone = 'rank 0 exited before all ranks connected: see its output'
    assert second in (message.format(1, theirs, 0, mine, '(torchrun sets it)'), gone)


def test_missing_ranks_and_ports_in_use_are_reported(listening):
    (error,) = same_worlds(listening[1], 2, timeout=0.3)
    place = f'127.0.0.1:{listening[1]}'
    assert error == f'rank 1 of WORLD_SIZE=2 did not connect to {place} within 0:00:00.300000: check that it is running'
    (error,) = same_worlds(listening[0], 2)
    place = f'MASTER_ADDR=127.0.0.1, MASTER_PORT={listening[0]}'
    assert error.startswith(f'{place}: rank 0 cannot listen at this port, choose a free one (')
