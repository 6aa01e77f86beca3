"""The order of training samples, as a function of seed and position alone."""

from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor

from .random_numbers import AUGMENTATION, ORDER, seed_of


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
