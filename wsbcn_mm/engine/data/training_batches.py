"""A few reproducible training batches, for measurements."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from ..resume.order import AUGMENTATION, SampleIndex, SeededSamples, seed_of


def training_batches(loader: DataLoader, samples: int, *, rank: int = 0, ranks: int = 1) -> DataLoader:
    """Return samples spread evenly over a loader's data, in batches of its size. Every pass gives the same numbers.

    Augmentation depends only on the sample. The order and the random numbers of `loader`, and of everything else in
    this process, do not change.

    Args:
        loader: Loader of the training data.
        samples: Number of samples over all ranks; the whole data if it has fewer.
        rank, ranks: Share of the samples to return.

    Raises:
        ValueError: If `samples` is below 1, or the data have no length.
    """
    if samples < 1:
        raise ValueError(f'samples={samples}: at least one is needed')
    data: Any = loader.dataset
    if not hasattr(data, '__len__'):
        raise ValueError(f'the training data ({type(data).__name__}) have no length: a dataset with a length is needed')
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
    """Run the forward pass of training and return its losses."""
    return model(**model.data_preprocessor(batch, True), mode='loss')
