"""The order of training samples, as a function of only the seed and the position."""

from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor

from .seeds import AUGMENTATION, ORDER, seed_of

SAMPLER = 'GlobalOrderSampler'
"""Registry name of `GlobalOrderSampler`."""


class SampleIndex(int):
    """Index of a sample in its dataset, with the seed of its augmentation. Pickling keeps both, as workers need."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]
        return int(self), self.seed


@DATA_SAMPLERS.register_module()
class GlobalOrderSampler(InfiniteSampler):
    """Yield one endless order of samples that all processes share and that can start at any position.

    The sample at position p is `permutation(seed, p // N)[p % N]` of the N samples. Process r of w takes the positions
    r, r + w, r + 2 w, ... A micro-batch of all processes is therefore the next stretch of the order, for any number of
    processes. Each item is a `SampleIndex` with a seed derived from (seed, epoch, index).

    The sampler replaces mmengine's InfiniteSampler and takes the same arguments. The training loop calls `skip` after
    `--resume`; it costs nothing. A permutation costs O(N) once per epoch (0.3 s for ten million samples). It comes from
    torch.randperm and may differ between versions of torch.

    Args:
        dataset: Dataset to sample; only its length is used.
        shuffle: False for the same order 0 ... N - 1 in every epoch.
        seed: Must be the same in all processes. None draws a seed and shares it.

    Raises:
        ValueError: For a dataset without samples, or a negative position.
    """

    dataset: Sized
    seed: int

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        super().__init__(dataset, shuffle, seed)
        if not self.size:
            raise ValueError('len(dataset)=0: at least one training sample is expected')
        self.start = 0
        """Number of samples of this process to skip."""

    def __iter__(self) -> Iterator[SampleIndex]:
        return self.indices_from(self.start * self.world_size + self.rank, self.world_size)

    def skip(self, num_samples: int) -> None:
        """Start after `num_samples` samples of this process, counted from the start of the order."""
        if num_samples < 0:
            raise ValueError(f'num_samples={num_samples}: a non-negative number is expected')
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
        """Exclude the unused generator of the base class, which cannot be pickled."""
        return {name: value for name, value in vars(self).items() if name != 'indices'}
