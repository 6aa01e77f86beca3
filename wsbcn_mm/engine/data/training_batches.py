"""A few training batches that are the same whenever they are asked for, to measure on."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from ..resume.order import SampleIndex
from ..resume.seeded_samples import SeededSamples
from ..resume.seeds import AUGMENTATION, seed_of


def training_batches(loader: DataLoader, samples: int, *, rank: int = 0, ranks: int = 1) -> DataLoader:
    """Samples spread evenly over a loader's data, in batches of its size; every pass over them gives the same numbers.

    Augmentation is a function of the sample alone. Order and random numbers of `loader`, and of everything else in this
    process, are left alone.

    Args:
        loader: Loader of the training data.
        samples: How many, of all ranks; all there are if there are fewer.
        rank, ranks: Which share of them to give.

    Raises:
        ValueError: For fewer than one sample, or for data without a length.
    """
    if samples < 1:
        raise ValueError(f'samples={samples}: at least one is needed')
    data: Any = loader.dataset
    if not hasattr(data, '__len__'):
        raise ValueError(f'the training data ({type(data).__name__}) have no length to choose samples from')
    chosen = range(0, len(data), max(1, len(data) // samples))[:samples][rank::ranks]
    return DataLoader(
        data if isinstance(data, SeededSamples) else SeededSamples(data),
        batch_size=loader.batch_size or loader.batch_sampler.batch_size,
        sampler=[SampleIndex(index, seed_of(AUGMENTATION, index)) for index in chosen],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
    )


def losses(model: Any, batch: Any) -> object:
    """A forward of all parts that training uses."""
    return model(**model.data_preprocessor(batch, True), mode='loss')
