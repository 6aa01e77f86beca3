"""The order of training samples, as a function of seed and position alone."""

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
"""What numbers are for: the order of an epoch, the augmentation of a sample, the model in an iteration."""


def seed_of(purpose: int, *which: int) -> int:
    """A seed of 64 bits; others are unrelated to it if any of the numbers differs (numpy's SeedSequence)."""
    return int(np.random.SeedSequence((purpose, *which)).generate_state(1, np.uint64)[0])


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, those of GPUs included."""
    _seed_python_and_numpy(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of the CPU for a block, and put them back afterwards."""
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
    """The index of a sample in its dataset, which knows the seed of its augmentation; it survives loader workers."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.seed


@DATA_SAMPLERS.register_module()
class GlobalOrderSampler(InfiniteSampler):
    """One endless order of samples for all processes together, begun anywhere at no cost.

    The sample at position p of it is ``permutation(seed, p // N)[p % N]`` of the N samples; process r of w takes the
    positions r, r + w, r + 2 w, ... So a micro-batch of all processes is the next stretch of the order, however many
    they are. What it hands out is a `SampleIndex`, with a seed made of (seed, epoch, index).

    Takes the place of mmengine's InfiniteSampler, whose arguments it has. `skip`, by which the training loop goes on
    after `--resume`, costs nothing; a permutation costs O(N) once per epoch (0.3 s for ten million samples). It is
    torch.randperm's: another version of torch may have another one.

    Args:
        dataset: What is sampled; only its length counts.
        shuffle: False for the same order 0 ... N - 1 in every epoch.
        seed: The same in all processes; drawn and shared where None.

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
        """Samples of this process that are left out."""

    def __iter__(self) -> Iterator[SampleIndex]:
        return self.indices_from(self.start * self.world_size + self.rank, self.world_size)

    def skip(self, num_samples: int) -> None:
        """Begin after so many samples of this process, counted from the start of the order."""
        if num_samples < 0:
            raise ValueError(f'num_samples={num_samples}: 0 or more are expected')
        self.start = num_samples

    def indices_from(self, position: int, step: int = 1) -> Iterator[SampleIndex]:
        """The samples at `position`, `position + step`, ... of the order, without end."""
        while True:
            epoch, place = divmod(position, self.size)
            for index in map(int, self._permutation(epoch)[place::step].numpy()):
                yield SampleIndex(index, seed_of(AUGMENTATION, self.seed, epoch, index))
                position += step

    def upcoming(self, position: int, count: int) -> list[int]:
        """Indices of the next `count` samples of all processes."""
        return [int(index) for index in islice(self.indices_from(position), count)]

    def _permutation(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(seed_of(ORDER, self.seed, epoch))
        return torch.randperm(self.size, generator=generator)

    def __getstate__(self) -> dict[str, Any]:
        """Without the base class's generator, which cannot be pickled and is not used."""
        return {name: value for name, value in vars(self).items() if name != 'indices'}


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed Python's, numpy's and torch's generators, on GPUs too, before every training iteration.

    Dropout and the like then draw the same numbers in an iteration whatever came before it: validation, another number
    of loader workers, or a kill and `--resume`. So checkpoints need not hold the generators' states. Ranks draw
    different numbers.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        seed_all(seed_of(MODEL, runner.seed, runner.iter, get_rank()))


SAMPLER = 'GlobalOrderSampler'


@DATASETS.register_module()
class SeededSamples(Dataset):
    """A dataset whose random numbers come from the seed in the index that it is asked for.

    Python's, numpy's and torch's global generators are put back afterwards, so that loading in the training process
    leaves the model's numbers alone. A plain int is passed on as it is. All else is the dataset's own.

    Args:
        dataset: A dataset, or the config of one.
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
        # Not for special methods: torch would find a `__getitems__` that goes past the seeds, pickle what is not there.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def seed_samples(cfg: Config) -> None:
    """Wrap the training data of a config in `SeededSamples`, if its sampler hands out the seeds."""
    loader = cfg.get('train_dataloader') or {}
    if (loader.get('sampler') or {}).get('type') == SAMPLER and loader.dataset.get('type') != SeededSamples.__name__:
        loader.dataset = dict(type=SeededSamples.__name__, dataset=loader.dataset)
