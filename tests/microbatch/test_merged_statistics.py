"""Merged statistics of three gloo processes against one process with the union of their data."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.microbatch import StepStatistics
from wsbcn_mm.microbatch.merged_statistics import merge_statistics
from wsbcn_mm.surgery.calibration import calibrate

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='forks')
COUNTS = (3, 1, 2)
"""Batches of each rank."""


def norms():
    """BN that averages over all its batches, and BCN."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            'bn': nn.BatchNorm2d(6, momentum=None),
            'bcn': BatchChannelNorm(6, 2),
            'stepwise': BatchChannelNorm(6, 2, warmup=True),
            'unseen': nn.BatchNorm2d(6),
            'seen_by_one': nn.BatchNorm2d(6, momentum=None),
        }
    ).double()


def batches(rank):
    """Batches of equal size; ranks differ in mean and variance."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(2, 6, 4, 5, generator=generator).double() * (1 + rank) + 3 * rank for _ in range(COUNTS[rank])]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=len(COUNTS))
    net = norms()
    statistics = StepStatistics(net['stepwise'])
    for x in batches(rank):
        net['bn'](x)
        net['stepwise'](x)
        if rank == 1:
            net['seen_by_one'](x)
    statistics.commit()
    calibrate_alone(net['bcn'], batches(rank))
    before = copy.deepcopy(net.state_dict())
    merge_statistics(dict(net.items()))
    once = copy.deepcopy(net.state_dict())
    merge_statistics(dict(net.items()))
    torch.save((before, once, copy.deepcopy(net.state_dict())), f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def calibrate_alone(norm, inputs):
    """Statistics of this rank's inputs, biased as BCN's are."""
    x = torch.cat(inputs).transpose(0, 1).flatten(1)
    var, mean = torch.var_mean(x, 1, correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    norm.num_batches_tracked.fill_(len(inputs))


@pytest.fixture(scope='module')
def merged(tmp_path_factory):
    """States of each rank before, after one and after two merges."""
    folder = tmp_path_factory.mktemp('merged')
    torch.multiprocessing.start_processes(worker, (str(folder),), nprocs=len(COUNTS), start_method='fork')
    return [torch.load(folder / f'{rank}.pt') for rank in range(len(COUNTS))]


def statistics(state, name):
    return state[f'{name}.running_mean'], state[f'{name}.running_var']


def test_all_ranks_have_the_statistics_of_the_union(merged):
    whole = norms()
    calibrate(whole['bcn'], [x for rank in range(len(COUNTS)) for x in batches(rank)], sweeps=1)
    for _, once, _ in merged:
        for value, expected in zip(statistics(once, 'bcn'), statistics(whole.state_dict(), 'bcn'), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


def test_batch_norm_gets_the_spread_between_ranks_and_not_the_mean_of_variances(merged):
    means, variances = zip(*(statistics(before, 'bn') for before, _, _ in merged), strict=True)
    weights = torch.tensor(COUNTS).double() / sum(COUNTS)
    mean = weights @ torch.stack(means)
    spread = weights @ (torch.stack(means) - mean).square()
    assert (spread > 1).all()
    for _, once, _ in merged:
        torch.testing.assert_close(once['bn.running_mean'], mean)
        torch.testing.assert_close(once['bn.running_var'], weights @ torch.stack(variances) + spread)


def test_a_rank_without_batches_has_no_weight(merged):
    for _, once, _ in merged:
        torch.testing.assert_close(statistics(once, 'seen_by_one'), statistics(merged[1][0], 'seen_by_one'))
        assert not once['unseen.running_mean'].any()
        assert (once['unseen.running_var'] == 1).all()


def test_what_agrees_already_and_counters_stay_bit_for_bit(merged):
    for before, once, twice in merged:
        for name, value in before.items():
            if 'running' not in name or name.startswith('stepwise'):
                assert torch.equal(once[name], value), name
            assert torch.equal(twice[name], once[name]), name
    assert [int(before['bn.num_batches_tracked']) for before, _, _ in merged] == list(COUNTS)


def test_a_single_process_changes_nothing():
    norm = nn.BatchNorm2d(6)
    norm(torch.randn(2, 6, 3, 3))
    before = copy.deepcopy(norm.state_dict())
    merge_statistics({'norm': norm})
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
