"""Convolutions and norms of any package are classified and counted by kind."""

from collections import Counter

import pytest
import torch
from mmcv.cnn import ConvAWS2d, ConvModule, ConvWS2d
from timm.layers import StdConv2d
from torch import nn

from wsbcn_mm import layers
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d, WSConv3d, WSConvTranspose2d
from wsbcn_mm.surgery.kinds import conv_kind, count_convs, count_norms, norm_kind, unknown_statistics


class OwnNorm(nn.Module):
    """A user's norm with running statistics."""

    def __init__(self):
        super().__init__()
        self.register_buffer('running_mean', torch.zeros(4))


class FrozenNorm(nn.BatchNorm2d):
    """A user's BatchNorm."""


@pytest.mark.parametrize(
    ('norm', 'kind'),
    [
        (BatchChannelNorm(8, 4), 'BCN'),
        (BatchChannelNorm(8, 4, statistics='batch'), 'BCN (batch)'),
        (BatchChannelNorm(8, 4, statistics='sync'), 'BCN (sync)'),
        (nn.BatchNorm1d(8), 'BN'),
        (nn.BatchNorm3d(8, track_running_stats=False), 'BN'),
        (FrozenNorm(8), 'BN'),
        (nn.SyncBatchNorm(8), 'SyncBN'),
        (nn.GroupNorm(2, 8), 'GN'),
        (nn.LayerNorm(8), 'LN'),
        (nn.InstanceNorm2d(8), 'IN'),
        (nn.InstanceNorm3d(8, track_running_stats=True), 'IN'),
        (nn.Conv2d(8, 8, 1), None),
        (nn.ReLU(), None),
        (OwnNorm(), None),
    ],
)
def test_kind_of_a_norm(norm, kind):
    assert norm_kind(norm) == kind


def test_kind_of_a_convolution():
    names = ('WSConv1d', 'WSConv2d', 'WSConv3d', 'WSConvTranspose1d', 'WSConvTranspose2d', 'WSConvTranspose3d')
    assert {conv_kind(getattr(layers, name)(4, 8, 1)) for name in names} == {'WS'}
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    assert {conv_kind(kind(4, 8, 1)) for kind in plain} == {'plain'}
    assert {conv_kind(kind(4, 8, 3)) for kind in (ConvWS2d, ConvAWS2d, StdConv2d)} == {'WS'}
    assert conv_kind(nn.Linear(4, 8)) is None
    assert conv_kind(nn.Sequential(nn.Conv2d(4, 8, 1))) is None


def test_counts_reach_into_modules_and_count_a_shared_one_once():
    shared = WSConv2d(4, 4, 1)
    model = nn.ModuleDict(
        {
            'a': nn.Sequential(shared, nn.GroupNorm(2, 4), nn.Sequential(shared, nn.BatchNorm2d(4))),
            'b': ConvModule(4, 4, 3, conv_cfg=dict(type='WSConv2d'), norm_cfg=dict(type='BCN', num_groups=2)),
            'c': nn.ModuleList([WSConv3d(4, 4, 1), WSConvTranspose2d(4, 4, 2), nn.Conv2d(4, 2, 1)]),
            'd': BatchChannelNorm(4, 2, statistics='sync'),
        }
    )
    assert count_convs(model) == Counter({'WS': 4, 'plain': 1})
    assert count_norms(model) == Counter({'GN': 1, 'BN': 1, 'BCN': 1, 'BCN (sync)': 1})
    assert count_convs(nn.ReLU()) == count_norms(nn.ReLU()) == Counter()


def test_conversion_to_sync_bn_shows_in_the_census():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), BatchChannelNorm(4, 2))
    assert count_norms(nn.SyncBatchNorm.convert_sync_batchnorm(model)) == Counter({'SyncBN': 1, 'BCN': 1})


def test_unknown_statistics_are_named():
    model = nn.Sequential(
        nn.BatchNorm2d(4),
        BatchChannelNorm(4, 2),
        nn.InstanceNorm2d(4, track_running_stats=True),
        nn.InstanceNorm2d(4),
        nn.Sequential(OwnNorm(), nn.ReLU()),
    )
    assert unknown_statistics(model) == ['4.0']
    assert unknown_statistics(model[:4]) == []
