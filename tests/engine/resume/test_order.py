"""The order of samples as a function of seed and position: of processes, epochs, loader workers and resumption."""

import pickle
import random
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader, Dataset

from wsbcn_mm.engine.resume.order import (
    AUGMENTATION,
    GlobalOrderSampler,
    SampleIndex,
    SeededSamples,
    seed_of,
    seed_samples,
    seeded,
)


def sampler_of(size, rank=0, world=1, **arguments):
    sampler = GlobalOrderSampler(range(size), **{'seed': 7, **arguments})
    sampler.rank, sampler.world_size = rank, world
    return sampler


def first(sampler, count):
    return list(islice(sampler, count))


def test_every_epoch_has_every_sample_once_in_another_order():
    order = first(sampler_of(11), 33)
    epochs = [order[start : start + 11] for start in (0, 11, 22)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order == first(sampler_of(11), 33)
    assert order != first(sampler_of(11, seed=8), 33)
    assert first(sampler_of(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 9), world=st.integers(1, 5), skipped=st.integers(0, 40))
def test_processes_share_one_order_and_go_on_anywhere_in_it(size, world, skipped):
    whole = first(sampler_of(size), (skipped + 6) * world)
    streams = []
    for rank in range(world):
        sampler = sampler_of(size, rank, world)
        sampler.skip(skipped)
        streams.append(first(sampler, 6))
    together = [index for of_all_ranks in zip(*streams, strict=True) for index in of_all_ranks]
    assert together == whole[skipped * world :]
    assert [index.seed for index in together] == [index.seed for index in whole[skipped * world :]]
    assert sampler_of(size).upcoming(skipped * world, 6) == whole[skipped * world :][:6]


def test_going_on_far_into_training_makes_one_permutation(monkeypatch):
    made = []
    permutation = torch.randperm
    monkeypatch.setattr(torch, 'randperm', lambda *args, **kwargs: made.append(1) or permutation(*args, **kwargs))
    sampler = sampler_of(1000, rank=3, world=8)
    sampler.skip(10**12)
    assert len(first(sampler, 100)) == 100
    assert len(made) == 1


def test_the_seed_of_an_augmentation_is_of_seed_epoch_and_index():
    order = first(sampler_of(5), 10)
    assert [index.seed for index in order] == [
        seed_of(AUGMENTATION, 7, place // 5, int(index)) for place, index in enumerate(order)
    ]
    assert len({index.seed for index in order}) == 10


def test_an_index_keeps_its_seed_on_the_way_to_a_worker():
    index = pickle.loads(pickle.dumps(SampleIndex(3, 2**63 + 1)))
    assert (index, index.seed, type(index)) == (3, 2**63 + 1, SampleIndex)


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match=r'^the training data have 0 samples: at least 1 is expected$'):
        sampler_of(0)
    with pytest.raises(ValueError, match=r'^num_samples=-1: 0 or more is expected$'):
        sampler_of(3).skip(-1)


class Augmented(Dataset):
    """Gives what each of the three generators draws, and where it was asked for a plain index."""

    @property
    def metainfo(self):
        return dict(classes=('a',))

    def __len__(self):
        return 6

    def __getitem__(self, index):
        assert type(index) is int
        return index, random.random(), np.random.rand(), torch.rand(1).item()

    def __getitems__(self, indices):
        raise AssertionError('a batch at once goes past the seeds')


def items(workers, batch_size, rank=0, world=1, count=12):
    loader = DataLoader(
        SeededSamples(Augmented()),
        batch_size,
        sampler=sampler_of(6, rank, world),
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context='fork' if workers else None,
    )
    return [item for batch in islice(loader, count // batch_size) for item in batch]


def test_augmentation_is_that_of_the_sample_whoever_loads_it():
    expected = items(0, 1)
    assert len(set(expected)) == 12
    assert items(2, 3) == expected
    ranks = [items(0, 2, rank, 2, count=6) for rank in range(2)]
    assert [item for pair in zip(*ranks, strict=True) for item in pair] == expected


def test_loading_leaves_the_training_process_its_own_random_numbers():
    for draw in (random.random, np.random.rand, lambda: torch.rand(1).item()):
        with seeded(1):
            expected = [draw(), draw()]
        with seeded(1):
            before = draw()
            SeededSamples(Augmented())[SampleIndex(2, 5)]
            assert [before, draw()] == expected


def test_a_plain_index_is_passed_on_and_all_else_is_the_datasets_own():
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
