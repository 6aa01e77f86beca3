"""Augmentation as a function of (seed, epoch, index), whichever process makes it."""

from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .random_numbers import seeded
from .samplers import SampleIndex

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
