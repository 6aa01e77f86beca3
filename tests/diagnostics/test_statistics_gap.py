"""The gap meter on images that differ in their means, which BatchNorm at one image per batch never sees."""

import copy

import pytest
import torch
from torch import nn

from wsbcn_mm.diagnostics.statistics_gap import StatisticsGap, statistics_gaps, table_of
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.ops.bcn.reference import batch_half
from wsbcn_mm.surgery.calibration import calibrate

CHANNELS = 64
WITHIN, BETWEEN = 1.0, 4.0
"""Variance within an image, and variance of the means of images."""


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    means = BETWEEN**0.5 * torch.randn(count, CHANNELS, 1, 1, generator=generator)
    return WITHIN**0.5 * torch.randn(count, CHANNELS, 5, 5, generator=generator) + means


def trained(norm, batch):
    for x in images(3000 * batch, seed=0).split(batch):
        norm(x)
    return norm.eval()


@pytest.fixture(scope='module')
def fresh():
    return images(2000, seed=1)


def std_in_evaluation(norm, x):
    """Standard deviation of the batch half's output."""
    return float(batch_half(x, norm.running_mean, norm.running_var, None, None, norm.eps).std())


@pytest.mark.parametrize('batch', [1, 2])
def test_bcn_evaluates_what_it_trained_on_and_batch_norm_does_not(batch, fresh):
    bcn = trained(BatchChannelNorm(CHANNELS, 8, rate=0.01), batch)
    bn = trained(nn.BatchNorm2d(CHANNELS, momentum=0.01), batch)
    assert std_in_evaluation(bcn, fresh) == pytest.approx(1, abs=0.1)
    seen = WITHIN + BETWEEN * (1 - 1 / batch)
    assert std_in_evaluation(bn, fresh) == pytest.approx(((WITHIN + BETWEEN) / seen) ** 0.5, rel=0.1)
    assert std_in_evaluation(bn, fresh) > 1.2


def test_the_meter_says_which_norm_is_off_and_by_how_much(fresh):
    net = nn.ModuleDict(
        {
            'bn': trained(nn.BatchNorm2d(CHANNELS, momentum=0.01), 1),
            'bcn': trained(BatchChannelNorm(CHANNELS, 8, rate=0.01), 1),
            'shifted': calibrated(nn.BatchNorm2d(CHANNELS), fresh),
            'unused': nn.BatchNorm2d(3),
        }
    ).train()
    net['shifted'].running_mean += (WITHIN + BETWEEN) ** 0.5 / 2
    before = copy.deepcopy(net.state_dict())
    gaps = statistics_gaps(net, fresh.split(500), forward=lambda x: [net[n](x) for n in ('bn', 'bcn', 'shifted')])
    assert [gap.norm for gap in gaps] == ['bn', 'shifted', 'bcn']
    assert gaps[0].var_ratio == pytest.approx((WITHIN + BETWEEN) / WITHIN, rel=0.1)
    assert gaps[1].mean_shift == pytest.approx(0.5, rel=0.05)
    assert gaps[2].factor < 1.1
    assert str(gaps[0])[:-1] == 'running_var of bn is 5.0x below measure'
    assert str(gaps[1]) == 'running_mean of shifted is 0.5 standard deviations from measured'
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert all(module.training for module in net.modules())


def calibrated(norm, x):
    calibrate(norm, [x], sweeps=1)
    return norm


def test_a_norm_behind_one_that_is_off_is_measured_with_what_evaluation_gives_it():
    torch.manual_seed(0)
    net = nn.Sequential(WSConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), WSConv2d(8, 8, 3), nn.BatchNorm2d(8))
    x = torch.randn(16, 3, 8, 8)
    calibrate(net, [x])
    assert max(gap.size for gap in statistics_gaps(net, x.split(4))) < 0.01
    net[1].running_var /= 4
    gaps = statistics_gaps(net, x.split(4))
    assert [gap.var_ratio for gap in gaps] == pytest.approx([4, 4], rel=0.05)


def test_table_of_the_largest_gaps():
    lines = table_of(
        [StatisticsGap('a.bn', 5, 0.25), StatisticsGap('b', 1, 0), StatisticsGap('c', 1, 0)], 2
    ).splitlines()
    assert lines[0] == 'norm  measured var / running var  mean shift (standard deviations)'
    assert [line.split() for line in lines[1:3]] == [['a.bn', '5.000', '0.250'], ['b', '1.000', '0.000']]
    assert lines[3] == '... and 1 more, with smaller gaps'


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match='the model has no BatchNorm or BatchChannelNorm with running statistics'):
        statistics_gaps(nn.Conv2d(3, 3, 1), [torch.zeros(1, 3, 4, 4)])
    with pytest.raises(ValueError, match='none of the 1 norms received a value'):
        statistics_gaps(nn.BatchNorm2d(3), [])
    with pytest.raises(ValueError, match='`` received infinities or nan: its statistics cannot be measured'):
        statistics_gaps(nn.BatchNorm2d(3), [torch.full((1, 3, 4, 4), torch.nan)])
