"""See before the first iteration whether what the loader workers make ready fits into memory."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from ...diagnostics.non_finite import tensors_in
from ..resume.seeds import seeded

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


WORKER = 32 * 2**20
"""Bytes that a forked worker has to itself; decoders and caches of the data take more."""
CLOSE = 0.8
"""Part of the room above which a warning is due."""


@HOOKS.register_module()
class LoaderMemoryHook(Hook):
    """Compare workers x prefetched batches x bytes per sample with free shared memory and with memory.

    One sample of each loader with workers is made to see how large it is; order, generators and augmentation of the run
    are left alone. Without workers nothing is made.

    Raises:
        ValueError: If the batches cannot fit, with the numbers and what would do.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        loaders = dict(train=runner.train_dataloader, val=getattr(runner.val_loop, 'dataloader', None))
        demands = [demand for name, loader in loaders.items() if (demand := demand_of(name, loader)) is not None]
        for line in check(demands, processes_here(), free_shared_memory(), available_memory()):
            runner.logger.warning(line)


class Demand(NamedTuple):
    """What a loader keeps ready.

    Attributes:
        name: `train` or `val`.
        workers: Processes.
        prefetch: Batches per worker.
        batch: Bytes of a batch.
    """

    name: str
    workers: int
    prefetch: int
    batch: int

    def bytes(self, workers: int) -> int:
        """Of the batches in flight with at most so many workers: those prefetched, and the one in use."""
        count = min(workers, self.workers)
        return (count * self.prefetch + 1) * self.batch if count else 0

    def __str__(self) -> str:
        return f'{self.name}: {self.workers} workers x {self.prefetch} batches of {gibibytes(self.batch)}'


def demand_of(name: str, loader: DataLoader | None) -> Demand | None:
    """Of a loader, by its first sample; None without workers."""
    if loader is None or not loader.num_workers:
        return None
    with seeded(0):
        sample = loader.dataset[0]
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    return Demand(name, loader.num_workers, loader.prefetch_factor or 2, size * bytes_of(sample))


def bytes_of(sample: Any) -> int:
    """Memory of all tensors in a sample; one that several share counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(sample)}.values())


def tensors_of(sample: Any) -> list[Tensor]:
    """Every tensor in nested dicts, sequences and data elements."""
    elements = [leaf for leaf in tree_leaves(sample) if isinstance(leaf, BaseDataElement)]
    return tensors_in(sample) + [tensor for element in elements for tensor in tensors_of(element.all_values())]


def processes_here() -> int:
    """Training processes on this machine, each of which has workers of its own."""
    return int(os.environ.get('LOCAL_WORLD_SIZE') or 1)


def check(demands: list[Demand], processes: int, shared: Room | None, memory: Room | None) -> list[str]:
    """Warnings where the loaders' batches come close to what there is.

    Raises:
        ValueError: Where they cannot fit.
    """
    said = []
    for room, own, what, more in (
        (shared, 0, 'shared memory', 'docker run --shm-size={size}g'),
        (memory, WORKER, 'memory', 'a larger limit'),
    ):
        if room is None or not demands:
            continue

        def need(workers: int, own: int = own) -> int:
            return processes * sum(d.bytes(workers) + own * min(workers, d.workers) for d in demands)

        most = max(demand.workers for demand in demands)
        if need(most) <= CLOSE * room.free:
            continue
        fit = max(n for n in range(most + 1) if need(n) <= room.free)
        reason = '; '.join(map(str, demands)) + (f'; times {processes} processes' if processes > 1 else '')
        needs = f'the data loaders need {gibibytes(need(most))} of {what} ({room.of}), which has {gibibytes(room.free)}'
        if fit == most:
            said.append(f'{needs}: it is close ({reason})')
            continue
        size = math.ceil(need(most) / CLOSE / 2**30)
        raise ValueError(f'{needs}: {more.format(size=size)} or num_workers<={fit} ({reason})')
    return said
