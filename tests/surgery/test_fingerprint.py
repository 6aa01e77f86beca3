"""Which checkpoints fit a model: six kinds of file, with and without a fingerprint, against each kind of model."""

import json
import re

import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.models.backbones import ResNet
from torch import nn

import wsbcn_mm.segmentation  # noqa: F401  registers the layers
from tests.surgery.public_files import authors_bcn
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.surgery.fingerprint import compare, describe, fingerprint, fingerprint_of_state

CONVS = {'plain': None, 'ws': dict(type='WSConv2d')}
NORMS = {'bn': dict(type='BN'), 'gn': dict(type='GN', num_groups=8), 'bcn': dict(type='BCN', num_groups=8)}
KINDS = ('bn', 'gn', 'gn-ws', 'bn-ws', 'bcn', 'bcn-ws')


def resnet(kind='bn', **changed):
    norm, _, ws = kind.partition('-')
    conv = CONVS[ws or 'plain']
    norm = NORMS[norm] | changed.get('norm', {})
    conv = conv and conv | changed.get('conv', {})
    with DefaultScope.overwrite_default_scope('mmseg'):
        return ResNet(
            depth=18, base_channels=16, stem_channels=16, conv_cfg=conv, norm_cfg=norm, zero_init_residual=False
        )  # fmt: skip


@pytest.fixture(scope='module')
def networks():
    return {kind: resnet(kind) for kind in KINDS}


def expected_differences(file, model):
    """Differences between the layers of a file of one kind and a model of another."""
    (norm, _, ws), (our_norm, _, our_ws) = file.partition('-'), model.partition('-')
    lines = []
    if ws != our_ws:
        kinds = {'': 'plain', 'ws': 'WS'}
        lines.append(f'20 x conv {kinds[ws]} in the checkpoint, {kinds[our_ws]} in the model (the first: conv1.conv)')
    if norm != our_norm:
        lines.append(
            f'20 x norm {norm.upper()} in the checkpoint, {our_norm.upper()} in the model (the first: conv1.norm)'
        )
    return lines


@pytest.mark.parametrize('model', KINDS)
@pytest.mark.parametrize('file', KINDS)
def test_a_file_with_a_fingerprint(file, model, networks):
    kept = json.loads(json.dumps(fingerprint(networks[file])))
    verdict = 'match' if file == model else 'mismatch'
    assert compare(kept, fingerprint(networks[model])) == (verdict, file, model, expected_differences(file, model))


@pytest.mark.parametrize('model', KINDS)
@pytest.mark.parametrize('file', KINDS)
def test_a_file_without_one_tells_its_norm_and_not_its_convolutions(file, model, networks):
    layers = fingerprint_of_state(networks[file].state_dict())
    norm, our_norm = file.partition('-')[0], model.partition('-')[0]
    verdict = 'unknown' if norm == our_norm else 'mismatch'
    differences = expected_differences(norm, our_norm)
    assert compare(layers, fingerprint(networks[model])) == (verdict, f'{norm} or {norm}-ws', model, differences)


def test_keys_and_shapes_of_gn_and_gn_ws_are_the_same(networks):
    shapes = [{k: t.shape for k, t in networks[kind].state_dict().items()} for kind in ('gn', 'gn-ws')]
    assert shapes[0] == shapes[1]


def test_the_authors_bcn_files_are_told_by_their_nested_batch_half(networks):
    layers = fingerprint_of_state(authors_bcn(networks['bcn-ws'].state_dict()))
    assert layers['module.layer1.0.bn1'] == {'norm': 'BCN', 'groups': 8}
    assert compare(layers, fingerprint(networks['bcn-ws'])).verdict == 'unknown'


@pytest.mark.parametrize(
    ('kind', 'changed', 'difference'),
    [
        ('gn-ws', {'conv': {'variant': 'bcn'}}, '20 x variant bcn in the checkpoint, jhu in the model'),
        ('gn-ws', {'conv': {'gain': 'fan_in'}}, '20 x gain fan_in in the checkpoint, none in the model'),
        ('gn-ws', {'conv': {'eps': 1e-3}}, '20 x eps 0.001 in the checkpoint, 1e-05 in the model'),
        ('gn', {'norm': {'num_groups': 16}}, '20 x groups 16 in the checkpoint, 8 in the model'),
        ('gn', {'norm': {'eps': 1e-3}}, '20 x eps 0.001 in the checkpoint, 1e-05 in the model'),
        ('bcn', {'norm': {'num_groups': 4}}, '20 x groups 4 in the checkpoint, 8 in the model'),
        ('bcn', {'norm': {'affine': 'channel'}}, '20 x affine channel in the checkpoint, group in the model'),
        ('bn', {'norm': {'eps': 1e-3}}, '20 x eps 0.001 in the checkpoint, 1e-05 in the model'),
    ],
)
def test_settings_that_change_the_function_are_differences(kind, changed, difference, networks):
    found = compare(fingerprint(resnet(kind, **changed)), fingerprint(networks[kind]))
    assert found.verdict == 'mismatch'
    assert found.theirs == found.ours == kind
    (line,) = found.differences
    assert line.startswith(f'{difference} (the first: conv1.')


@pytest.mark.parametrize(
    ('kind', 'changed'),
    [
        ('bcn', {'norm': {'rate': 0.01}}),
        ('bcn', {'norm': {'statistics': 'sync'}}),
        ('bn', {'norm': {'momentum': 0.01}}),
        ('bn', {'norm': {'type': 'SyncBN'}}),
    ],
)
def test_settings_that_only_affect_training_are_no_differences(kind, changed, networks):
    theirs = fingerprint(resnet(kind, **changed))
    assert compare(theirs, fingerprint(networks[kind])) == ('match', kind, kind, [])
    assert theirs != fingerprint(networks[kind]) or changed == {'norm': {'type': 'SyncBN'}}


def test_a_fingerprint_says_all_settings():
    net = nn.Sequential(
        WSConv2d(3, 8, 3, variant='bcn'),
        BatchChannelNorm(8, 4, rate=0.2, statistics='sync', eps=1e-3),
        WSConv2d(8, 8, 3, eps=1e-4, gain='fan_in'),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 4, 1),
        nn.BatchNorm2d(4, momentum=None),
        nn.ReLU(),
    )
    assert fingerprint(net) == {
        '0': {'conv': 'WS', 'variant': 'bcn', 'eps': 1e-5},
        '1': {'norm': 'BCN', 'groups': 4, 'affine': 'group', 'eps': 1e-3, 'rate': 0.2, 'statistics': 'sync'},
        '2': {'conv': 'WS', 'variant': 'jhu', 'gain': 'fan_in', 'eps': 1e-4},
        '3': {'norm': 'GN', 'groups': 2, 'eps': 1e-5},
        '4': {'conv': 'plain'},
        '5': {'norm': 'BN', 'eps': 1e-5, 'rate': None},
    }
    assert describe(fingerprint(net[4:])) == 'bn'
    assert describe({}) == 'no norm'


def test_a_file_from_before_there_were_gains_has_none(networks):
    """Such is its fingerprint, and the importer's fingerprint of the authors' files."""
    theirs, with_gain = fingerprint(networks['gn-ws']), fingerprint(resnet('gn-ws', conv={'gain': 'fan_in'}))
    assert 'gain' not in theirs['conv1']
    (line,) = compare(theirs, with_gain).differences
    assert line == '20 x gain none in the checkpoint, fan_in in the model (the first: conv1.conv)'


def test_backbone_and_whole_model_are_compared_over_what_they_share(networks):
    whole = {f'backbone.{name}': layer for name, layer in fingerprint(networks['gn-ws']).items()}
    whole['decode_head.conv_seg'] = {'conv': 'plain'}
    assert compare(fingerprint(networks['gn-ws']), whole) == ('match', 'gn-ws', 'gn-ws', [])
    assert compare(whole, fingerprint(networks['gn'])).theirs == 'gn-ws'


def test_nothing_in_common_is_refused(networks):
    message = (
        'the checkpoint and the model have no layer in common: the checkpoint has none, the model conv1.conv, '
        'conv1.norm, '
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
        compare(fingerprint_of_state({'fc.weight': torch.zeros(2, 2)}), fingerprint(networks['gn']))
