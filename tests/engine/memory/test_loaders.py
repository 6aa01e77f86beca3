"""Whether the prefetched batches fit, with loaders of real samples and memories of any size."""

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from torch.utils.data import DataLoader, Dataset

from wsbcn_mm.engine.memory import loaders as loader_memory
from wsbcn_mm.engine.memory.host_memory import Room
from wsbcn_mm.engine.memory.loaders import Demand, LoaderMemoryHook, bytes_of, check, demand_of

MIB, GIB = 2**20, 2**30
PLENTY = Room(2**50, "the machine's memory")


class Pictures(Dataset):
    """Random pictures of 1 MiB, with labels of 2 MiB."""

    def __init__(self):
        self.made = 0

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.made += 1
        random.random(), np.random.rand()
        labels = BaseDataElement(gt_sem_seg=PixelData(data=torch.randint(0, 9, (1, 512, 512))))
        return dict(inputs=torch.randint(0, 256, (4, 512, 512), dtype=torch.uint8), data_samples=labels)


def shm(free):
    return Room(free, '/dev/shm')


def test_a_loaders_demand_is_measured_on_a_sample_and_disturbs_nothing():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    found = demand_of('train', DataLoader(Pictures(), batch_size=4, num_workers=2, prefetch_factor=3))
    assert found == Demand('train', workers=2, prefetch=3, batch=4 * 3 * MIB)
    assert found.bytes(2) == (2 * 3 + 1) * 12 * MIB
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_without_workers_no_sample_is_made():
    data = Pictures()
    assert demand_of('train', DataLoader(data, batch_size=4)) is None
    assert demand_of('val', None) is None
    assert data.made == 0
    assert check([], 1, shm(0), Room(0, 'x')) == []


def test_shared_tensors_count_once():
    x = torch.zeros(2, 1024, dtype=torch.uint8)
    assert bytes_of(dict(a=x, b=[x[0], (x, 'text')], c=3)) == 2048


def refused(*arguments):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        check(*arguments)
    return str(error.value)


def test_shared_memory_of_a_container_is_too_small():
    demands = [Demand('train', 16, 2, 189 * MIB), Demand('val', 4, 2, 24 * MIB)]
    assert refused(demands, 1, shm(GIB), PLENTY) == (
        'the data loaders need 6.3 GiB of shared memory; 1.0 GiB are free (/dev/shm): use docker run --shm-size=8g or '
        'num_workers<=1 (train: 16 workers x 2 batches of 189 MiB; val: 4 workers x 2 batches of 24 MiB)'
    )
    assert 'num_workers<=0 ' in refused(demands, 1, shm(64 * MIB), PLENTY)
    assert check(demands, 1, shm(8 * GIB), PLENTY) == []
    assert check(demands, 1, None, None) == []


def test_every_process_has_its_own_workers():
    demands = [Demand('train', 2, 2, 100 * MIB)]
    assert check(demands, 1, shm(GIB), PLENTY) == []
    message = refused(demands, 8, shm(GIB), PLENTY)
    assert message.startswith('the data loaders need 3.9 GiB of shared memory; 1.0 GiB are free (/dev/shm): ')
    assert message.endswith('num_workers<=0 (train: 2 workers x 2 batches of 100 MiB; times 8 processes)')


def test_memory_counts_the_workers_too():
    limit = Room(2 * GIB, 'a cgroup limit of 4.0 GiB')
    assert refused([Demand('train', 8, 2, 128 * MIB)], 1, shm(2**50), limit) == (
        'the data loaders need 2.4 GiB of memory; 2.0 GiB are free (a cgroup limit of 4.0 GiB): use a larger limit or '
        'num_workers<=6 (train: 8 workers x 2 batches of 128 MiB)'
    )


def test_close_to_the_limit_is_a_warning():
    (line,) = check([Demand('train', 2, 2, 100 * MIB)], 1, shm(520 * MIB), PLENTY)
    assert line == (
        'the data loaders need 500 MiB of shared memory; 520 MiB are free (/dev/shm): this is close to the limit '
        '(train: 2 workers x 2 batches of 100 MiB)'
    )


def test_the_hook_checks_both_loaders_of_a_runner(monkeypatch):
    warnings = []
    loaders = [DataLoader(Pictures(), batch_size=size, num_workers=workers) for size, workers in ((2, 2), (1, 1))]
    runner = SimpleNamespace(
        train_dataloader=loaders[0],
        val_loop=SimpleNamespace(dataloader=loaders[1]),
        logger=SimpleNamespace(warning=warnings.append),
    )
    monkeypatch.setattr(loader_memory, 'available_memory', lambda: None)
    monkeypatch.setattr(loader_memory, 'free_shared_memory', lambda: shm(40 * MIB))
    # An interactive Slurm allocation of eight tasks, in which one process trains.
    monkeypatch.setenv('SLURM_NTASKS_PER_NODE', '8')
    LoaderMemoryHook().before_train(runner)
    (line,) = warnings
    assert re.search(r'need 39 MiB .* \(train: 2 workers x 2 batches of 6 MiB; val: 1 workers x 2 batches of 3 M', line)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    with pytest.raises(ValueError, match=r'need 78 MiB .* or num_workers<=0 \(.*; times 2 processes\)$'):
        LoaderMemoryHook().before_train(runner)
    runner.val_loop = None
    runner.train_dataloader = DataLoader(Pictures())
    LoaderMemoryHook().before_train(runner)
    assert warnings == [line]
