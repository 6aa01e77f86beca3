"""Make the augmentation of a training sample a function of the seed in its index."""

from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .order import SAMPLER, SampleIndex
from .seeds import seeded


@DATASETS.register_module()
class SeededSamples(Dataset):
    """Wrap a dataset so that the random numbers of a sample come from the seed in its `SampleIndex`.

    The states of Python's, numpy's and torch's global generators are restored afterwards: loading in the training
    process does not change the random numbers of the model. A plain int is passed through without seeding. All other
    attributes are those of the dataset.

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
        # Exclude special methods: torch would call a `__getitems__` that bypasses the seeds, pickle undefined methods.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def seed_samples(cfg: Config) -> None:
    """Wrap the training data of a config in `SeededSamples`, if its sampler provides the seeds."""
    loader = cfg.get('train_dataloader') or {}
    if (loader.get('sampler') or {}).get('type') == SAMPLER and loader.dataset.get('type') != SeededSamples.__name__:
        loader.dataset = dict(type=SeededSamples.__name__, dataset=loader.dataset)
