"""The order of samples depends on only seed and position: not on processes, epochs, loader workers or resumption."""

import pickle
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsbcn_mm.engine.resume.order import GlobalOrderSampler, SampleIndex
from wsbcn_mm.engine.resume.seeds import AUGMENTATION, seed_of


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
def test_processes_share_one_order_and_continue_anywhere_in_it(size, world, skipped):
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


def test_resuming_late_in_training_makes_one_permutation(monkeypatch):
    made = []
    permutation = torch.randperm
    monkeypatch.setattr(torch, 'randperm', lambda *args, **kwargs: made.append(1) or permutation(*args, **kwargs))
    sampler = sampler_of(1000, rank=3, world=8)
    sampler.skip(10**12)
    assert len(first(sampler, 100)) == 100
    assert len(made) == 1


def test_the_seed_of_an_augmentation_depends_on_seed_epoch_and_index():
    order = first(sampler_of(5), 10)
    assert [index.seed for index in order] == [
        seed_of(AUGMENTATION, 7, place // 5, int(index)) for place, index in enumerate(order)
    ]
    assert len({index.seed for index in order}) == 10


def test_an_index_keeps_its_seed_on_the_way_to_a_worker():
    index = pickle.loads(pickle.dumps(SampleIndex(3, 2**63 + 1)))
    assert (index, index.seed, type(index)) == (3, 2**63 + 1, SampleIndex)


def test_empty_datasets_and_negative_positions_are_rejected():
    with pytest.raises(ValueError, match=r'^len\(dataset\)=0: at least one training sample is expected$'):
        sampler_of(0)
    with pytest.raises(ValueError, match=r'^num_samples=-1: a non-negative number is expected$'):
        sampler_of(3).skip(-1)
