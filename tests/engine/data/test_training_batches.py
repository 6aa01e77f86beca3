"""Batches for measurements: spread over the data, reproducible, without an effect on other random numbers."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from tests.engine.toy_runs import Points
from wsbcn_mm.engine.data.training_batches import training_batches

LOADER = DataLoader(Points(), batch_size=3, collate_fn=default_collate)


class Indices(Points):
    def __getitem__(self, index):
        return index, random.random(), np.random.rand()


def indices(loader, *args, **kwargs):
    return [batch[0].tolist() for batch in training_batches(loader, *args, **kwargs)]


def test_they_are_spread_over_the_data_and_shared_by_the_ranks():
    loader = DataLoader(Indices(), batch_size=3)
    assert indices(loader, 6) == [[0, 4, 8], [12, 16, 20]]
    assert indices(loader, 7) == [[0, 3, 6], [9, 12, 15], [18]]
    assert indices(loader, 100) == torch.arange(24).view(8, 3).tolist()
    assert [indices(loader, 7, rank=rank, ranks=2) for rank in range(2)] == [[[0, 6, 12], [18]], [[3, 9, 15]]]
    assert indices(loader, 1, rank=1, ranks=2) == []


@pytest.mark.parametrize('workers', [0, 1])
def test_they_are_reproducible_and_do_not_change_random_numbers(workers):
    loader = DataLoader(Points(), batch_size=3, num_workers=workers)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    batches = training_batches(loader, 6)
    first, second = ([batch['inputs'] for batch in batches] for _ in range(2))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert all(map(torch.equal, first, second))
    elsewhere = [batch['inputs'] for batch in training_batches(LOADER, 6)]
    assert all(map(torch.equal, first, elsewhere))


def test_wrong_numbers_and_data_without_a_length_are_rejected():
    with pytest.raises(ValueError, match='samples=0: at least one is needed'):
        training_batches(LOADER, 0)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(
        ValueError, match=r'the training data \(Stream\) have no length: a dataset with a length is needed'
    ):
        training_batches(DataLoader(Stream()), 5)
