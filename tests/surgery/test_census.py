"""The census of real models: rows, pairs, values per statistic, reasons, and breaches of a policy."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from wsbcn_mm.layers import BatchChannelNorm, WSConv2d, WSConvTranspose2d
from wsbcn_mm.microbatch import StepStatistics
from wsbcn_mm.surgery.census import Census, ConvRow, NormRow, breaches, census, summary
from wsbcn_mm.surgery.convert import convert
from wsbcn_mm.surgery.policies import POLICIES, get_policy
from wsbcn_mm.surgery.trace import trace

X = torch.randn(2, 4, 6, 8)


def net():
    return nn.Sequential(
        WSConv2d(4, 8, 3, groups=2, bias=False, variant='bit'),
        BatchChannelNorm(8, 4, rate=0.2),
        nn.Conv2d(8, 6, 1),
        nn.GroupNorm(3, 6),
        WSConvTranspose2d(6, 4, 2, stride=2),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.Conv2d(4, 3, 1),
    )


def test_a_row_describes_its_layer_completely():
    model = net()
    optimizer = torch.optim.SGD(
        [
            dict(params=[p for p in model.parameters() if p.ndim > 1]),
            dict(params=[p for p in model.parameters() if p.ndim == 1 and p is not model[3].weight], weight_decay=0.0),
        ],
        lr=0.1,
        weight_decay=0.01,
    )
    model(X)
    found = census(model, trace(model, X), param_groups=optimizer.param_groups)
    assert found == Census(
        convs=(
            ConvRow('0', 'WS', 'WSConv2d', 'bit', (4, 8), (3, 3), 2, 18, 0.01, ('1',)),
            ConvRow('2', 'plain', 'Conv2d', None, (8, 6), (1, 1), 1, 8, 0.01, ('3',)),
            ConvRow('4', 'WS', 'WSConvTranspose2d', 'jhu', (6, 4), (2, 2), 1, 24, 0.01, ('5',)),
            ConvRow('6', 'plain', 'Conv2d', None, (4, 3), (1, 1), 1, 4, 0.01, ()),
        ),
        norms=(
            NormRow('1', 'BCN', 'BatchChannelNorm', 8, 4, 0.2, 1, 0.0, 2, 24, 48, ('0',)),
            NormRow('3', 'GN', 'GroupNorm', 6, 3, None, None, 0.0, 1, 24, 48, ('2',)),
            NormRow('5', 'BN', 'BatchNorm2d', 4, None, 0.3, 1, 0.0, 2, 96, None, ('4',)),
        ),
        left_out={'6': 'no norm follows: its output leaves the model'},
        traced=True,
    )
    assert json.loads(json.dumps(found.as_dict()))['norms'][2]['positions'] == 96


def test_without_a_forward_and_an_optimizer_less_is_known():
    found = census(net().to('meta'))
    assert not found.traced
    assert [row.norms for row in found.convs] == [('1',), ('3',), ('5',), ()]
    assert {(row.samples, row.positions, row.group_values, row.weight_decay) for row in found.norms} == {(None,) * 4}
    assert [row.updates for row in found.norms] == [None, None, None]
    assert found.left_out == {'6': 'no norm follows: the next module is not a norm with as many channels'}


@pytest.mark.parametrize(
    ('norm', 'stepwise', 'samples'),
    [
        (nn.BatchNorm2d(4), True, 2),
        (nn.SyncBatchNorm(4), False, 2 * 3),
        (nn.GroupNorm(2, 4), True, 1),
        (nn.InstanceNorm2d(4), True, 1),
        (nn.LayerNorm([4, 6, 8]), True, None),
        (BatchChannelNorm(4, 2), False, 2),
        (BatchChannelNorm(4, 2), True, 2 * 3 * 5),
        (BatchChannelNorm(4, 2, statistics='batch'), True, 2),
        (BatchChannelNorm(4, 2, statistics='sync'), True, 2 * 3),
    ],
)
def test_the_batch_behind_a_statistic(norm, stepwise, samples):
    model = nn.Sequential(norm)
    (row,) = census(model, trace(model, X), accumulation=5, ranks=3, stepwise=stepwise).norms
    assert row.samples == samples
    assert row.positions == (None if samples is None else 48)


def test_stepwise_statistics_are_seen_on_the_model():
    model = nn.Sequential(BatchChannelNorm(4, 2))
    assert census(model, trace(model, X), accumulation=5).norms[0].samples == 2
    StepStatistics(model)
    assert census(model, trace(model, X), accumulation=5).norms[0].samples == 10


def test_a_norm_of_several_sizes_counts_its_smallest_statistic():
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(norm, nn.MaxPool2d(2), norm)
    (row,) = census(model, trace(model, X)).norms
    assert (row.samples, row.positions) == (2, 12)


def test_layers_that_no_policy_changes_have_a_reason():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.InstanceNorm2d(4),
        FrozenBatchNorm2d(4),
    )  # fmt: skip
    assert census(model, trace(model, X)).left_out == {
        '0': 'fan-in 1: a filter of a single weight cannot be standardised',
        '2': 'no norm follows: its output goes to relu()',
        '4': 'no policy applies to InstanceNorm2d',
        '5': 'keeps running statistics, but is not a known norm',
    }


def test_the_summary_is_short():
    model = net()
    assert summary(census(model, trace(model, X), accumulation=4, stepwise=True)) == [
        '3 of 4 convolutions have a norm after them, seen in the forward pass, WS variant bit, jhu',
        'statistics of 1 BCN: samples 8, positions 24, values per group 48, rate 0.2',
        'statistics of 1 GN: samples 1, positions 24, values per group 48',
        'statistics of 1 BN: samples 2, positions 96, rate 0.3',
        'left out: 6: no norm follows: its output leaves the model',
    ]
    model = timm.create_model('resnet18').to('meta')
    assert summary(census(model, trace(model, torch.empty(1, 3, 64, 64, device='meta')))) == [
        '20 of 20 convolutions have a norm after them, seen in the forward pass',
        'statistics of 20 BN: samples 1, positions 4 to 1024, rate 0.1',
    ]
    assert summary(census(model))[1] == 'statistics of 20 BN: rate 0.1'


@pytest.mark.parametrize('policy', POLICIES)
def test_a_converted_model_meets_its_policy_and_no_other(policy):
    with torch.device('meta'):
        model, x = torchvision.models.video.r3d_18(), torch.empty(1, 3, 4, 32, 32)
    convert(model, policy, example=x)
    found = census(model, trace(model, x))
    assert [name for name, wanted in POLICIES.items() if not breaches(found, wanted)] == [policy]


def test_breaches_say_what_and_how_many():
    model = net()
    found = census(model, trace(model, X))
    assert breaches(found, get_policy('bcn-ws')) == [
        '1 norms are GN instead of BCN (the first: 3)',
        '1 norms are BN instead of BCN (the first: 5)',
        '1 convolutions have a norm after them but no Weight Standardization (the first: 2)',
    ]
    assert breaches(found, get_policy('gn'))[2:] == [
        '2 convolutions have Weight Standardization, which the policy does not allow there (the first: 0)',
    ]
    assert breaches(replace(found, norms=found.norms[:1]), get_policy('gn'))[1] == 'the model has no GN'


def test_a_standardised_filter_without_a_norm_is_a_breach():
    model = nn.Sequential(WSConv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    assert breaches(census(model, trace(model, X)), get_policy('bn-ws')) == [
        '1 convolutions have Weight Standardization but no norm after them (the first: 0)'
    ]


def test_ws_confined_to_the_backbone():
    parts = {name: nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)) for name in ('backbone', 'head')}
    model = nn.ModuleDict(parts)
    convert(model, 'gn-ws-backbone')
    found = census(model)
    assert breaches(found, get_policy('gn-ws-backbone')) == []
    assert len(breaches(found, get_policy('gn-ws'))) == len(breaches(found, get_policy('gn'))) == 1
