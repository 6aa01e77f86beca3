"""Before training, check that the batches which loader workers prefetch fit into memory."""

import math
import os
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
from .host_memory import Room, available_memory, free_shared_memory, gibibytes

WORKER = 32 * 2**20
"""Bytes private to a forked worker; decoders and caches of the data take more."""
CLOSE = 0.8
"""Fraction of the free memory above which a warning is logged."""


@HOOKS.register_module()
class LoaderMemoryHook(Hook):
    """Compare workers x prefetched batches x bytes per sample with free shared memory and with free memory.

    The hook loads one sample of each loader that has workers, to measure its size. Sample order, random generators and
    augmentation of the run do not change. Without workers nothing is loaded.

    Raises:
        ValueError: If the batches cannot fit. The message has the numbers and the remedies.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        loaders = dict(train=runner.train_dataloader, val=getattr(runner.val_loop, 'dataloader', None))
        demands = [demand for name, loader in loaders.items() if (demand := demand_of(name, loader)) is not None]
        for line in check(demands, processes_here(), free_shared_memory(), available_memory()):
            runner.logger.warning(line)


class Demand(NamedTuple):
    """The batches that a loader keeps in memory.

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
        """Return the bytes of the batches prefetched by at most `workers` workers, and of the batch in use."""
        count = min(workers, self.workers)
        return (count * self.prefetch + 1) * self.batch if count else 0

    def __str__(self) -> str:
        return f'{self.name}: {self.workers} workers x {self.prefetch} batches of {gibibytes(self.batch)}'


def demand_of(name: str, loader: DataLoader | None) -> Demand | None:
    """Return the demand of a loader, estimated from its first sample; None without workers."""
    if loader is None or not loader.num_workers:
        return None
    with seeded(0):
        sample = loader.dataset[0]
    size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    return Demand(name, loader.num_workers, loader.prefetch_factor or 2, size * bytes_of(sample))


def bytes_of(sample: Any) -> int:
    """Return the bytes of all tensors in a sample; a storage that several tensors share counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(sample)}.values())


def tensors_of(sample: Any) -> list[Tensor]:
    """Return every tensor in nested dicts, sequences and data elements."""
    elements = [leaf for leaf in tree_leaves(sample) if isinstance(leaf, BaseDataElement)]
    return tensors_in(sample) + [tensor for element in elements for tensor in tensors_of(element.all_values())]


def processes_here() -> int:
    """Return the number of training processes on this machine, each of which starts its own workers."""
    return int(os.environ.get('LOCAL_WORLD_SIZE') or 1)


def check(demands: list[Demand], processes: int, shared: Room | None, memory: Room | None) -> list[str]:
    """Return a warning for each memory that the batches nearly fill.

    Raises:
        ValueError: If the batches cannot fit.
    """
    warnings = []
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
        needs = f'the data loaders need {gibibytes(need(most))} of {what}; {gibibytes(room.free)} are free ({room.of})'
        if fit == most:
            warnings.append(f'{needs}: this is close to the limit ({reason})')
            continue
        size = math.ceil(need(most) / CLOSE / 2**30)
        raise ValueError(f'{needs}: use {more.format(size=size)} or num_workers<={fit} ({reason})')
    return warnings
