"""Calibration: the statistics become those of the norms' inputs in evaluation, and nothing else changes."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.surgery.trained_bn import Branches
from wsbcn_mm.diagnostics.statistics_gap import statistics_gaps
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.microbatch import StepStatistics
from wsbcn_mm.surgery.calibration import calibrate

NORMS = {
    'BN': (nn.BatchNorm2d, 1),
    'SyncBN': (nn.SyncBatchNorm, 1),
    'BCN': (partial(BatchChannelNorm, num_groups=2), 0),
    'BCN (batch)': (partial(BatchChannelNorm, num_groups=2, statistics='batch'), 1),
}
"""Constructor, and whether its variance is the unbiased one (correction of torch.var)."""

SIZES = (2, 1, 4)


def network(kind='BCN'):
    torch.manual_seed(0)
    net = Branches(WSConv2d, NORMS[kind][0])
    for module in net.modules():
        if hasattr(module, 'running_mean'):
            nn.init.normal_(module.bias)
    return net


def batches(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 9, 8 + n, generator=generator) + i for i, n in enumerate(SIZES)]


def received(net, inputs):
    """Return norm name -> its input in evaluation, (C, values)."""
    found, handles = {}, []
    for name, module in net.named_modules():
        if hasattr(module, 'running_mean'):
            handles.append(module.register_forward_pre_hook(partial(keep, found.setdefault(name, []))))
    with torch.no_grad():
        net.eval()
        for x in inputs:
            net(x)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(values, 1) for name, values in found.items()}


def keep(found, module, args):
    found.append(args[0].transpose(0, 1).flatten(1))


def assert_statistics(net, inputs, correction, names=('bn1', 'bn2', 'bn3', 'bn4'), near=1e-4):
    """Assert that they are those of the norms' inputs, to a share `near` of standard deviation and variance."""
    for name, values in received(net, inputs).items():
        if name in names:
            norm = net.get_submodule(name)
            var, mean = torch.var_mean(values, 1, correction=correction)
            assert_near(norm.running_mean, norm.running_var, mean, var, near)


def assert_near(mean, var, other_mean, other_var, near):
    assert ((mean - other_mean) / other_var.sqrt()).abs().max() < near
    assert (var / other_var - 1).abs().max() < near


@pytest.mark.parametrize('kind', NORMS)
def test_statistics_are_those_of_all_values_that_a_norm_receives(kind):
    net = network(kind)
    done = calibrate(net, [torch.cat([x[..., :8] for x in batches()])], sweeps=1)
    assert_statistics(net, [x[..., :8] for x in batches()], NORMS[kind][1])
    assert tuple(done.statistics) == ('bn1', 'bn2', 'bn3', 'bn4')
    assert (done.unreached, done.batches) == ((), 1)
    assert calibrate(net, [torch.cat([x[..., :8] for x in batches()])]).change < 1e-3


@pytest.mark.parametrize('kind', NORMS)
def test_more_sweeps_over_several_batches_come_nearer(kind):
    net = network(kind)
    changes = [calibrate(net, batches(), sweeps=sweeps).change for sweeps in (2, 4, 8)]
    assert changes == sorted(changes, reverse=True)
    assert_statistics(net, batches(), NORMS[kind][1], near=0.02)
    calibrate(net, batches(), sweeps=1)
    assert_statistics(net, batches(), NORMS[kind][1], names=['bn1'])
    with pytest.raises(AssertionError):
        assert_statistics(net, batches(), NORMS[kind][1], near=0.02)


def test_a_network_of_many_norms_in_a_row():
    """Normalising with the previous sweep would be off by a factor of thousands after three sweeps."""
    torch.manual_seed(0)
    layers = [(WSConv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(16)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *(layer for triple in layers for layer in triple))
    images = (torch.randn(48, 3, 8, 8) + 2 * torch.randn(48, 3, 1, 1)).split(1)
    calibrate(net, images)
    worst = statistics_gaps(net, images)[0]
    assert worst.factor < 1.3
    assert worst.mean_shift < 0.2


def test_the_split_into_batches_hardly_matters():
    net, other = network(), network()
    images = torch.randn(6, 3, 9, 9) * 3
    calibrate(net, images.split(1), sweeps=8)
    calibrate(other, [images])
    for name in ('bn1', 'bn2', 'bn3', 'bn4'):
        ours, theirs = net.get_submodule(name), other.get_submodule(name)
        near = 1e-4 if name == 'bn1' else 0.02
        assert_near(ours.running_mean, ours.running_var, theirs.running_mean, theirs.running_var, near)


def test_nothing_else_changes():
    net = network().train()
    net.bn2.eval()
    net.bn3.num_batches_tracked.fill_(100)
    parameters = copy.deepcopy(dict(net.named_parameters()))
    calibrate(net, batches())
    assert all(torch.equal(p, parameters[name]) for name, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert not net.bn2.training
    assert [int(norm.num_batches_tracked) for norm in (net.bn1, net.bn2, net.bn3)] == [3, 3, 100]
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_with_statistics_that_move_once_per_step():
    net = network().train()
    statistics = StepStatistics(net)
    calibrate(net, batches(), sweeps=8)
    assert statistics.state_dict() == {}
    assert_statistics(net, batches(), 0, near=0.02)
    net.train()(batches()[0])
    before = net.bn1.running_mean.clone()
    with pytest.raises(ValueError, match=r'`bn1` has statistics that StepStatistics has not committed: call its'):
        calibrate(net, batches())
    statistics.commit()
    assert not torch.equal(net.bn1.running_mean, before)
    calibrate(net, batches())


def test_a_part_that_does_not_run_keeps_its_statistics():
    net = network()
    done = calibrate(net, [dict(image=x) for x in batches()], forward=lambda batch: net.features(batch['image']))
    assert done.unreached == ('bn4',)
    assert not net.bn4.running_mean.any()
    assert int(net.bn4.num_batches_tracked) == 0


def test_what_cannot_be_calibrated_is_refused_and_changes_nothing():
    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match='batches is an iterator, which is exhausted by the first of 3 sweeps: give a'):
        calibrate(net, iter(batches()))
    with pytest.raises(ValueError, match='none of the 4 norms received a value: at least one batch with data is expec'):
        calibrate(net, [])
    with pytest.raises(ValueError, match='sweeps=0: at least 1 is expected'):
        calibrate(net, batches(), sweeps=0)
    with pytest.raises(ValueError, match='`bn1` received infinities or nan: its statistics cannot be measured'):
        calibrate(net, [*batches(), torch.full((1, 3, 9, 9), torch.inf)])
    with pytest.raises(RuntimeError, match='expected input'):
        calibrate(net, [*batches(), torch.zeros(1, 5, 9, 9)])
    with pytest.raises(ValueError, match='the model has no BatchNorm or BatchChannelNorm with running statistics'):
        calibrate(nn.Conv2d(3, 3, 1), batches())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def worker(rank: int, folder: str) -> None:
    """Rank 0 has the first batch, rank 1 the others."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    net = network()
    calibrate(net, batches()[:1] if rank == 0 else batches()[1:], sweeps=8)
    torch.save(dict(net.named_buffers()), f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_pool_their_batches(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    whole = network()
    calibrate(whole, batches(), sweeps=8)
    for name in dict(whole.named_buffers()):
        assert torch.equal(first[name], second[name]) or 'tracked' in name, name
    for name in ('bn1', 'bn2', 'bn3', 'bn4'):
        ours, norm = (first[f'{name}.running_mean'], first[f'{name}.running_var']), whole.get_submodule(name)
        assert_near(*ours, norm.running_mean, norm.running_var, 1e-4 if name == 'bn1' else 0.02)
