"""Free host memory and shared memory, within the limits of containers and batch jobs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NO_LIMIT = 2**60
"""Bytes. Version 1 of cgroups expresses "no limit" as a number above this."""


class Room(NamedTuple):
    """Free bytes, and what bounds them."""

    free: int
    of: str


def available_memory(root: Path = Path('/')) -> Room | None:
    """Return the memory that is available without swapping: the machine's, or the tightest cgroup limit if it is less.

    Args:
        root: Root of the file system that contains `proc` and `sys`.

    Returns:
        None if the system does not report it.
    """
    rooms = [*_of_machine(root / 'proc' / 'meminfo'), *_of_cgroups(root)]
    return min(rooms, default=None)


def free_shared_memory(path: str = '/dev/shm') -> Room | None:
    """Return the free shared memory, through which loader workers pass their batches; None if `path` does not exist."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return None
    return Room(stat.f_bavail * stat.f_frsize, path)


def gibibytes(count: float) -> str:
    """Format a number of bytes: '6.1 GiB', '64 MiB'."""
    return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.0f} MiB'


def _of_machine(meminfo: Path) -> Iterator[Room]:
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            name, _, value = line.partition(':')
            if name == 'MemAvailable':
                yield Room(int(value.split()[0]) * 1024, "the machine's memory")


def _of_cgroups(root: Path) -> Iterator[Room]:
    groups = root / 'proc' / 'self' / 'cgroup'
    if not groups.is_file():
        return
    mount = root / 'sys' / 'fs' / 'cgroup'
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(':', 2)
        if not controllers:
            yield from _with_parents(mount, path, 'memory.max', 'memory.current', 'inactive_file')
        elif 'memory' in controllers.split(','):
            files = ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file')
            yield from _with_parents(mount / 'memory', path, *files)


def _with_parents(mount: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[Room]:
    """Yield the room of a cgroup and of its ancestors. Inside a container, only the mount itself may exist."""
    group = mount / path.strip('/')
    while True:
        most = (group / limit).read_text().strip() if (group / limit).is_file() else 'max'
        if most != 'max' and int(most) < NO_LIMIT:
            used = int((group / usage).read_text())
            cache = _entry(group / 'memory.stat', reclaimable)
            yield Room(max(0, int(most) - used + cache), f'a cgroup limit of {gibibytes(int(most))}')
        if group == mount or mount not in group.parents:
            return
        group = group.parent


def _entry(stat: Path, name: str) -> int:
    lines = stat.read_text().splitlines() if stat.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.split()[0] == name), 0)
