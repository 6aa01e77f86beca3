"""Calibration: the statistics are those of what norms receive in evaluation, and nothing else changes."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from trained_bn import Branches

from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.microbatch import StepStatistics
from wsbcn_mm.surgery.calibration import calibrate

NORMS = {
    'BN': (nn.BatchNorm2d, 1),
    'SyncBN': (nn.SyncBatchNorm, 1),
    'BCN': (partial(BatchChannelNorm, num_groups=2), 0),
    'BCN (batch)': (partial(BatchChannelNorm, num_groups=2, statistics='batch'), 1),
}
"""How to make one, and whether its variance is the unbiased one."""

SIZES = (2, 1, 4)
DEPTH = 3


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
    """Name of each norm -> (C, values) that it receives in evaluation."""
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


def assert_statistics(net, inputs, correction, names=('bn1', 'bn2', 'bn3', 'bn4')):
    for name, values in received(net, inputs).items():
        if name in names:
            norm = net.get_submodule(name)
            var, mean = torch.var_mean(values, 1, correction=correction)
            torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', NORMS)
def test_statistics_are_those_of_all_values_that_a_norm_receives(kind):
    net = network(kind)
    done = calibrate(net, batches(), sweeps=DEPTH)
    assert_statistics(net, batches(), NORMS[kind][1])
    assert tuple(done.statistics) == ('bn1', 'bn2', 'bn3', 'bn4')
    assert (done.unreached, done.batches) == ((), len(SIZES))
    longer = calibrate(network(kind), batches(), sweeps=DEPTH + 1)
    assert longer.change < 1e-4 < done.change


def test_one_sweep_is_exact_where_no_norm_comes_before():
    net = network()
    calibrate(net, batches(), sweeps=1)
    assert_statistics(net, batches(), 0, names=['bn1'])
    with pytest.raises(AssertionError):
        assert_statistics(net, batches(), 0)


def test_the_split_into_batches_does_not_matter():
    net, other = network(), network()
    images = torch.randn(6, 3, 9, 9) * 3
    calibrate(net, images.split(1), sweeps=DEPTH)
    calibrate(other, [images], sweeps=DEPTH)
    for name, value in net.named_buffers():
        if 'tracked' not in name:
            torch.testing.assert_close(value, other.get_buffer(name), rtol=1e-4, atol=1e-4)


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
    calibrate(net, batches(), sweeps=DEPTH)
    assert statistics.state_dict() == {}
    assert_statistics(net, batches(), 0)
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
    with pytest.raises(ValueError, match='batches is an iterator, which ends with the first of 3 sweeps: give a list'):
        calibrate(net, iter(batches()))
    with pytest.raises(ValueError, match='none of the 4 norms received a value: there is no batch, or it is empty'):
        calibrate(net, [])
    with pytest.raises(ValueError, match='sweeps=0: at least one is needed'):
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
    calibrate(net, batches()[:1] if rank == 0 else batches()[1:], sweeps=DEPTH)
    torch.save(dict(net.named_buffers()), f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_pool_their_batches(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    whole = network()
    calibrate(whole, batches(), sweeps=DEPTH)
    for name, value in whole.named_buffers():
        if 'tracked' not in name:
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-4)
