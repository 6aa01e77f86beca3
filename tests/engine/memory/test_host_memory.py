"""Free memory, read from files as the kernel writes them for a machine, for containers and for batch jobs."""

import os

import pytest

from wsbcn_mm.engine.memory.host_memory import Room, available_memory, free_shared_memory, gibibytes

GIB = 2**30


@pytest.fixture
def system(tmp_path):
    """Return a function that writes files below a root: path -> text."""

    def write(files):
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return write


MEMINFO = {'proc/meminfo': 'MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   16777216 kB\n'}


def test_a_machine_without_limits(system):
    assert available_memory(system(MEMINFO)) == Room(16 * GIB, "the machine's memory")
    unlimited = {'proc/self/cgroup': '0::/user\n', 'sys/fs/cgroup/user/memory.max': 'max\n'}
    assert available_memory(system(MEMINFO | unlimited)).free == 16 * GIB
    assert available_memory(system({}) / 'gone') is None


def test_a_container_of_the_second_version(system):
    """A container sees its own group as the root. File cache counts as free."""
    files = {
        'proc/self/cgroup': '0::/docker/abc\n',
        'sys/fs/cgroup/memory.max': f'{8 * GIB}\n',
        'sys/fs/cgroup/memory.current': f'{5 * GIB}\n',
        'sys/fs/cgroup/memory.stat': f'anon 1\ninactive_file {2 * GIB}\nactive_file 7\n',
    }
    assert available_memory(system(MEMINFO | files)) == Room(5 * GIB, 'a cgroup limit of 8.0 GiB')


def test_a_batch_job_of_the_first_version_below_a_tighter_group(system):
    group = 'sys/fs/cgroup/memory/slurm/job_7'
    files = {
        'proc/self/cgroup': '5:cpu:/\n4:memory:/slurm/job_7\n0::/\n',
        f'{group}/memory.limit_in_bytes': '9223372036854771712\n',
        f'{group}/memory.usage_in_bytes': '1\n',
        'sys/fs/cgroup/memory/slurm/memory.limit_in_bytes': f'{4 * GIB}\n',
        'sys/fs/cgroup/memory/slurm/memory.usage_in_bytes': f'{5 * GIB}\n',
        'sys/fs/cgroup/memory/slurm/memory.stat': f'total_inactive_file {GIB // 2}\n',
    }
    assert available_memory(system(MEMINFO | files)) == Room(0, 'a cgroup limit of 4.0 GiB')


@pytest.mark.skipif(not os.path.exists('/proc/meminfo'), reason='needs Linux')
def test_this_machine():
    assert 2**20 < available_memory().free < 2**50


def test_shared_memory(tmp_path):
    stat = os.statvfs(tmp_path)
    assert free_shared_memory(str(tmp_path)).of == str(tmp_path)
    assert 0 <= free_shared_memory(str(tmp_path)).free <= stat.f_blocks * stat.f_frsize
    assert free_shared_memory(str(tmp_path / 'gone')) is None


def test_shared_memory_of_a_docker_container(monkeypatch):
    """64 MiB, a quarter of them used. Blocks reserved for root do not count as free."""
    stat = os.statvfs_result((4096, 4096, 16384, 14000, 12288, 1, 1, 1, 0, 255))
    monkeypatch.setattr(os, 'statvfs', lambda path: stat)
    assert free_shared_memory() == Room(48 * 2**20, '/dev/shm')


def test_units():
    assert [gibibytes(count) for count in (64 * 2**20, 6.1 * GIB)] == ['64 MiB', '6.1 GiB']
