"""The augmentation of a sample depends on only its seed, in every process that loads it."""

import pickle
import random
from itertools import islice

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader, Dataset

from wsbcn_mm.engine.resume.order import GlobalOrderSampler, SampleIndex
from wsbcn_mm.engine.resume.seeded_samples import SeededSamples, seed_samples
from wsbcn_mm.engine.resume.seeds import seeded


def sampler_of(rank, world):
    sampler = GlobalOrderSampler(range(6), seed=7)
    sampler.rank, sampler.world_size = rank, world
    return sampler


class Augmented(Dataset):
    """Returns a plain index and one draw of each of the three generators."""

    @property
    def metainfo(self):
        return dict(classes=('a',))

    def __len__(self):
        return 6

    def __getitem__(self, index):
        assert type(index) is int
        return index, random.random(), np.random.rand(), torch.rand(1).item()

    def __getitems__(self, indices):
        raise AssertionError('fetching a whole batch bypasses the seeds')


def items(workers, batch_size, rank=0, world=1, count=12):
    loader = DataLoader(
        SeededSamples(Augmented()),
        batch_size,
        sampler=sampler_of(rank, world),
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context='fork' if workers else None,
    )
    return [item for batch in islice(loader, count // batch_size) for item in batch]


def test_augmentation_does_not_depend_on_the_process_that_loads_a_sample():
    expected = items(0, 1)
    assert len(set(expected)) == 12
    assert items(2, 3) == expected
    ranks = [items(0, 2, rank, 2, count=6) for rank in range(2)]
    assert [item for pair in zip(*ranks, strict=True) for item in pair] == expected


def test_loading_does_not_change_the_random_numbers_of_the_training_process():
    for draw in (random.random, np.random.rand, lambda: torch.rand(1).item()):
        with seeded(1):
            expected = [draw(), draw()]
        with seeded(1):
            before = draw()
            SeededSamples(Augmented())[SampleIndex(2, 5)]
            assert [before, draw()] == expected


def test_a_plain_index_and_other_attributes_are_passed_through():
    samples = SeededSamples(Augmented())
    torch.manual_seed(3)
    expected = torch.rand(1).item()
    torch.manual_seed(3)
    assert samples[4][3] == expected
    assert len(samples) == 6
    assert samples.metainfo == dict(classes=('a',))
    assert not hasattr(samples, '__getitems__')
    assert len(pickle.loads(pickle.dumps(samples))) == 6


def test_the_training_data_of_a_config_are_wrapped_once():
    loader = dict(dataset=dict(type='Anything', data_root='here'), sampler=dict(type='GlobalOrderSampler'))
    cfg = Config(dict(train_dataloader=loader, val_dataloader=loader))
    seed_samples(cfg)
    seed_samples(cfg)
    assert cfg.train_dataloader.dataset == dict(type='SeededSamples', dataset=loader['dataset'])
    assert cfg.val_dataloader.dataset == loader['dataset']
    for untouched in (dict(), dict(train_dataloader=loader | dict(sampler=dict(type='InfiniteSampler')))):
        cfg = Config(untouched)
        seed_samples(cfg)
        assert cfg._cfg_dict == untouched


def test_it_builds_the_dataset_it_wraps():
    DATASETS.register_module(name='AugmentedSamples', module=Augmented, force=True)
    built = DATASETS.build(dict(type='SeededSamples', dataset=dict(type='AugmentedSamples')))
    assert isinstance(built.dataset, Augmented)
