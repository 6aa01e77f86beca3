"""How much memory this process may still take, and how much is left to hand tensors between processes in."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NO_LIMIT = 2**60
"""cgroups of the first version write a number beyond all memory where there is no limit."""


class Room(NamedTuple):
    """Bytes that are left, and what bounds them."""

    free: int
    of: str


def available_memory(root: Path = Path('/')) -> Room | None:
    """Memory that can be had without swapping: the machine's, or less where a container or a batch job is limited.

    Args:
        root: Of the file system that has `proc` and `sys`.

    Returns:
        None where the system does not say.
    """
    rooms = [*_of_machine(root / 'proc' / 'meminfo'), *_of_cgroups(root)]
    return min(rooms, default=None)


def free_shared_memory(path: str = '/dev/shm') -> Room | None:
    """What is left of the memory in which loader workers hand over their batches; None where there is no such place."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return None
    return Room(stat.f_bavail * stat.f_frsize, path)


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
    """Of a group and of those that it lies in; inside a container only the last of them may be there."""
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


def gibibytes(count: float) -> str:
    """'6.1 GiB', '64 MiB'."""
    return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.0f} MiB'
