"""The order of samples and all random numbers as functions of seed and position, so that no generator state is kept."""

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import Dataset

ORDER, AUGMENTATION, MODEL = range(3)
"""Purposes of random numbers: the order of an epoch, the augmentation of a sample, the model in an iteration."""


def seed_of(purpose: int, *which: int) -> int:
    """Return a seed of 64 bits, unrelated to the seeds of all other numbers (numpy's SeedSequence)."""
    return int(np.random.SeedSequence((purpose, *which)).generate_state(1, np.uint64)[0])


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, including those of GPUs."""
    _seed_python_and_numpy(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU for a block, and restore them afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_python_and_numpy(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed_python_and_numpy(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])


class SampleIndex(int):
    """Index of a sample that carries the seed of its augmentation, also through loader workers."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.seed


@DATA_SAMPLERS.register_module()
class GlobalOrderSampler(InfiniteSampler):
    """One endless order of samples for all processes, which can start at any position at no cost.

    The sample at position p is `permutation(seed, p // N)[p % N]` of the N samples; process r of w takes the positions
    r, r + w, r + 2 w, ... So a micro-batch of all processes is the next stretch of the order, for any number of
    processes. The sampler yields a `SampleIndex` with a seed made of (seed, epoch, index).

    It replaces mmengine's InfiniteSampler and takes the same arguments. `skip`, which the training loop calls after
    `--resume`, is free; a permutation costs O(N) once per epoch (0.3 s for ten million samples). It comes from
    torch.randperm, which may differ between versions of torch.

    Args:
        dataset: Data set to sample; only its length counts.
        shuffle: False for the order 0 ... N - 1 in every epoch.
        seed: Seed of all processes; None draws and shares one.

    Raises:
        ValueError: For a dataset without samples, or a negative position.
    """

    dataset: Sized
    seed: int

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(dataset, shuffle, seed)
        if not self.size:
            raise ValueError('the training data have 0 samples: at least 1 is expected')
        self.start = 0
        """Number of samples of this process to skip."""

    def __iter__(self) -> Iterator[SampleIndex]:
        return self.indices_from(self.start * self.world_size + self.rank, self.world_size)

    def skip(self, num_samples: int) -> None:
        """Start after `num_samples` samples of this process, counted from the beginning of the order."""
        if num_samples < 0:
            raise ValueError(f'num_samples={num_samples}: 0 or more is expected')
        self.start = num_samples

    def indices_from(self, position: int, step: int = 1) -> Iterator[SampleIndex]:
        """Yield the samples at `position`, `position + step`, ... of the order, endlessly."""
        while True:
            epoch, place = divmod(position, self.size)
            for index in map(int, self._permutation(epoch)[place::step].numpy()):
                yield SampleIndex(index, seed_of(AUGMENTATION, self.seed, epoch, index))
                position += step

    def upcoming(self, position: int, count: int) -> list[int]:
        """Return the indices of the next `count` samples of all processes."""
        return [int(index) for index in islice(self.indices_from(position), count)]

    def _permutation(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(seed_of(ORDER, self.seed, epoch))
        return torch.randperm(self.size, generator=generator)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the generator of the base class, which cannot be pickled and is not used."""
        return {name: value for name, value in vars(self).items() if name != 'indices'}


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed the generators of Python, numpy and torch, including those of GPUs, before every training iteration.

    Dropout then draws the same numbers in an iteration, whatever came before: validation, another number of loader
    workers, or a kill and `--resume`. Checkpoints need no generator states. Ranks draw different numbers.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        seed_all(seed_of(MODEL, runner.seed, runner.iter, get_rank()))


SAMPLER = 'GlobalOrderSampler'


@DATASETS.register_module()
class SeededSamples(Dataset):
    """Data set whose random numbers come from the seed of the requested `SampleIndex`.

    The global generators of Python, numpy and torch are restored afterwards, so that loading in the training process
    does not change the model's random numbers. A plain int is passed on unchanged. Everything else is the data set's.

    Args:
        dataset: A data set, or its config.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SampleIndex):
            return self.dataset[index]
        with seeded(index.seed):
            return self.dataset[int(index)]

    def __getattr__(self, name: str) -> Any:
        # Not for special methods: torch would find a `__getitems__` that bypasses the seeds, and pickle would fail.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def seed_samples(cfg: Config) -> None:
    """Wrap the training data of a config in `SeededSamples`, if its sampler provides the seeds."""
    loader = cfg.get('train_dataloader') or {}
    if (loader.get('sampler') or {}).get('type') == SAMPLER and loader.dataset.get('type') != SeededSamples.__name__:
        loader.dataset = dict(type=SeededSamples.__name__, dataset=loader.dataset)
