"""Imported files of other projects give our models the function of the original definition."""

import re
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from mmengine.registry import DefaultScope
from mmseg.models.backbones import ResNet, ResNetV1c, ResNetV1d
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

import wsbcn_mm.segmentation  # noqa: F401  registers layers and heads
from tests.surgery.public_files import (
    authors_aspp,
    authors_bcn,
    bit_arrays,
    deep_stem_of_timm,
    mmaction2_recognizer,
    randomize_,
)
from wsbcn_mm.layers import WSConv2d
from wsbcn_mm.surgery.checkpoint_import import SOURCES, Imported, from_bit, identify, import_checkpoint, match
from wsbcn_mm.surgery.fingerprint import fingerprint
from wsbcn_mm.surgery.layer_names import canonical_names, join_norm_halves, stage_of
from wsbcn_mm.video.models.recognizer import Recognizer3d
from wsbcn_mm.video.models.resnet3d import ResNet3d

BCN = dict(type='BCN', num_groups=32)
WS_BCN = dict(type='WSConv2d', variant='bcn')


def resnet(depth=18, kind=ResNet, *, conv=None, norm=None, **kwargs):
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = kind(depth=depth, conv_cfg=conv, norm_cfg=norm or dict(type='BN'), zero_init_residual=False, **kwargs)
    model.eval()  # mmseg's returns None
    return model


def recognizer(channels, **backbone):
    return Recognizer3d(
        dict(type='ResNet3d', depth=18, **backbone), dict(type='ClipHead', num_classes=5, in_channels=channels)
    )


def load(model: nn.Module, theirs, **options) -> Imported:
    imported = import_checkpoint(theirs, model.state_dict(), fingerprint(model), **options)
    model.load_state_dict(imported.match.state)
    return imported


def assert_close(out, expected):
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_torchvisions_classifier_keeps_its_function(name):
    theirs = randomize_(getattr(torchvision.models, name)(num_classes=5)).eval()
    ours = resnet(int(name[-2:]), style='pytorch')
    imported = load(ours, theirs.state_dict())
    assert imported.source == 'torchvision'
    assert imported.comparison.verdict == 'match'
    assert imported.match.left_over == ['fc.weight', 'fc.bias']
    assert imported.match.missing == imported.match.misshapen == imported.match.defaults == []
    features = {}
    theirs.layer4.register_forward_hook(lambda module, args, out: features.update(out=out))
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        theirs(x)
        out = ours(x)[-1]
    assert_close(out, features['out'])


TIMM = {
    'resnet50_gn': (ResNet, dict(depth=50, norm=dict(type='GN', num_groups=32)), 'timm-gn'),
    'resnet18d': (ResNetV1d, dict(depth=18), 'torchvision'),
}


@pytest.mark.parametrize('name', TIMM)
def test_timms_resnets_keep_their_function(name):
    kind, kwargs, source = TIMM[name]
    theirs = randomize_(timm.create_model(name, pretrained=False, num_classes=5)).eval()
    ours = resnet(kind=kind, **kwargs)
    imported = load(ours, theirs.state_dict(), source=source)
    assert imported.match.left_over == ['fc.weight', 'fc.bias']
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        assert_close(ours(x)[-1], theirs.forward_features(x))


VIDEO: dict[str, dict] = {
    'r3d_18': {},
    'r2plus1d_18': {'factorize': True},
    'mc3_18': {'inflate': (1, 0, 0, 0), 'temporal_strides': (1, 1, 1, 1)},
}


@pytest.mark.parametrize(('name', 'kwargs'), VIDEO.items())
def test_torchvisions_video_networks_keep_their_function(name, kwargs):
    theirs = randomize_(getattr(torchvision.models.video, name)(num_classes=5)).eval()
    ours = recognizer(512, **kwargs).eval()
    imported = load(ours, theirs.state_dict())
    assert imported.source == 'torchvision-video'
    assert not any(imported.match[2:])
    x = torch.randn(1, 3, 4, 32, 24)
    with torch.no_grad():
        expected = theirs(x)
        out = ours(x[:, None])[:, 0]
    assert_close(out, expected)


def test_torchvisions_deeplab_brings_backbone_and_auxiliary_head_and_names_the_rest():
    theirs = randomize_(
        torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, aux_loss=True, num_classes=6
        )
    ).eval()
    ours = segmentor(num_classes=6)
    imported = load_partly(ours, theirs.state_dict())
    assert imported.source == 'torchvision-segmentation'
    assert imported.match.backbone_coverage() == 1
    assert {name.split('.')[0] for name in imported.match.missing} == {'decode_head'}
    assert {name.split('.')[0] for name in imported.match.left_over} == {'classifier'}
    x = torch.randn(1, 3, 65, 49)
    with torch.no_grad():
        features = theirs.backbone(x)
        assert_close(ours.backbone(x)[-1], features['out'])
        assert_close(ours.auxiliary_head(ours.backbone(x)), theirs.aux_classifier(features['aux']))


def segmentor(num_classes, *, conv=None, norm=None, depth=50, **backbone):
    from mmseg.registry import MODELS

    norm = norm or dict(type='BN')
    head = dict(num_classes=num_classes, conv_cfg=conv, norm_cfg=norm, align_corners=True, dropout_ratio=0)
    width = 512 if depth < 50 else 2048
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(
            dict(
                type='EncoderDecoder',
                backbone=dict(
                    type='ResNet', depth=depth, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True,
                    conv_cfg=conv, norm_cfg=norm, zero_init_residual=False, style='pytorch', **backbone,
                ),
                decode_head=dict(
                    type='DeepLabV3Head', in_channels=width, in_index=3, channels=256, dilations=(1, 6, 12, 18),
                    bottleneck_kernel_size=1, **head,
                ),
                auxiliary_head=dict(
                    type='FCNHead', in_channels=width // 2, in_index=2, channels=width // 8, num_convs=1,
                    concat_input=False, **head,
                ),
            )
        ).eval()  # fmt: skip


def load_partly(model, theirs, **options):
    imported = import_checkpoint(theirs, model.state_dict(), fingerprint(model), **options)
    missing = set(model.load_state_dict(imported.match.state, strict=False).missing_keys)
    # torch adds the count of batches to a file without a version
    assert missing == {key for key in imported.match.missing if 'num_batches' not in key or key in missing}
    return imported


@pytest.mark.parametrize('child', ['pbn', 'bn'])
def test_the_bcn_authors_imagenet_files_fit_bcn_and_the_variant_of_that_code(child):
    original = randomize_(resnet(conv=WS_BCN, norm=BCN))
    state = original.state_dict() | {'fc.weight': torch.zeros(5, 512), 'fc.bias': torch.zeros(5)}
    theirs = authors_bcn(state, child=child)
    assert theirs['module.bn1.weight'].shape == (1, 32, 1)
    assert f'module.layer2.0.downsample.1.{child}.running_mean' in theirs
    ours = resnet(conv=WS_BCN, norm=BCN)
    imported = load(ours, theirs)
    assert imported.source == 'bcn-imagenet'
    assert imported.match.left_over == ['fc.weight', 'fc.bias']
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), original.state_dict().values(), strict=True)
    )
    assert imported.fingerprint['layer1.0.bn1'] == {'norm': 'BCN', 'groups': 32, 'affine': 'group', 'eps': 1e-5}
    assert imported.fingerprint['conv1'] == {'conv': 'WS', 'variant': 'bcn', 'eps': 1e-5}
    assert imported.fingerprint.keys() == fingerprint(ours).keys()


def test_another_variant_of_ws_is_refused():
    theirs = authors_bcn(resnet(conv=WS_BCN, norm=BCN).state_dict() | {'fc.weight': torch.zeros(5, 512)})
    message = (
        "the file (the BCN authors' ImageNet files) is bcn-ws, the model bcn-ws: 20 x variant bcn in the checkpoint, "
        'jhu in the model (the first: conv1.conv). Import it into a model with the same norm and WS variant, or import '
        'only matching entries with --allow-mismatch'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        load(resnet(conv=dict(type='WSConv2d'), norm=BCN), theirs)


def test_the_bcn_authors_deeplab_keeps_its_function_with_the_pooled_branch_moved():
    ws = dict(type='WSConv2d')
    original = randomize_(segmentor(21, conv=ws, norm=BCN, depth=18))
    del original.auxiliary_head
    theirs = authors_bcn(authors_aspp(original.state_dict()))
    assert theirs['module.aspp.conv2.weight'].shape == (256, 5 * 256, 1, 1)
    assert not torch.equal(theirs['module.aspp.conv2.weight'], original.decode_head.bottleneck.conv.weight)
    ours = segmentor(21, conv=ws, norm=BCN, depth=18)
    imported = load_partly(ours, theirs)
    assert imported.source == 'bcn-deeplab'
    assert {name.split('.')[0] for name in imported.match.missing} == {'auxiliary_head'}
    assert imported.match.left_over == []
    x = torch.randn(1, 3, 33, 49)
    with torch.no_grad():
        assert torch.equal(ours.decode_head(ours.backbone(x)), original.decode_head(original.backbone(x)))


def test_an_estimated_batch_norm_that_never_counted_counts_as_past_its_warm_up():
    state = randomize_(resnet(conv=WS_BCN, norm=BCN)).state_dict()
    state = {key: torch.zeros_like(t) if key.endswith('num_batches_tracked') else t for key, t in state.items()}
    theirs = authors_bcn(state | {'fc.weight': torch.zeros(5, 512)}, child='bn')
    theirs['module.bn1.bn.estbn_moving_speed'] = torch.zeros(1)
    ours = resnet(conv=WS_BCN, norm=BCN)
    imported = load(ours, theirs)
    assert ours.bn1.num_batches_tracked == 1_000_000
    assert len(imported.match.defaults) == 20
    assert imported.match.describe().endswith('set to neutral values: 20 num_batches_tracked = 1000000')
    assert 'bn1.estbn_moving_speed' in imported.match.left_over


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.'])
def test_openmmlabs_gn_ws_files_need_their_source_named(prefix):
    norm = dict(type='GN', num_groups=32)
    original = randomize_(resnet(conv=dict(type='WSConv2d'), norm=norm))
    theirs = {f'{prefix}{key}': tensor for key, tensor in original.state_dict().items()}
    assert f'{prefix}layer1.0.gn1.weight' in theirs
    ours = resnet(conv=dict(type='WSConv2d'), norm=norm)
    message = (
        'the keys of this file (norm: GN) do not show where it comes from, nor whether its filters were trained with '
        'Weight Standardization: name its source, one of jhu-gn-ws, openmmlab-gn, timm-gn, bit'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        load(ours, theirs)
    load(ours, theirs, source='jhu-gn-ws')
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), original.state_dict().values(), strict=True)
    )
    with pytest.raises(ValueError, match=r'is gn, the model gn-ws: 20 x conv plain in the checkpoint, WS in the model'):
        load(ours, theirs, source='openmmlab-gn')


def test_group_norms_called_bn_are_group_norms():
    norm = dict(type='GN', num_groups=32)
    original = randomize_(resnet(norm=norm))
    theirs = {re.sub(r'\bgn(\d)', r'bn\1', key): tensor for key, tensor in original.state_dict().items()}
    ours = resnet(norm=norm)
    load(ours, theirs, source='timm-gn')
    assert torch.equal(ours.gn1.weight, original.gn1.weight)


def test_a_deep_stem_fits_resnet_v1c():
    original = randomize_(resnet(kind=ResNetV1c))
    theirs = deep_stem_of_timm(original.state_dict())
    assert {'conv1.0.weight', 'conv1.4.running_var', 'bn1.bias'} <= set(theirs)
    ours = resnet(kind=ResNetV1c)
    imported = load(ours, theirs, source='torchvision')
    assert not any(imported.match[2:])
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), original.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize('kwargs', [{}, {'factorize': True}])
def test_mmaction2s_names_fit_with_and_without_a_recognizer(kwargs):
    original = randomize_(ResNet3d(18, base_channels=8, **kwargs))
    theirs = mmaction2_recognizer(original.state_dict())
    ours = recognizer(64, base_channels=8, **kwargs)
    imported = load(ours, theirs)
    assert imported.source == 'mmaction2'
    assert not any(imported.match[2:])
    assert torch.equal(ours.head.fc.weight, theirs['cls_head.fc_cls.weight'])
    assert torch.equal(ours.backbone.layer4[1].conv2.bn.running_var, original.layer4[1].conv2.bn.running_var)
    load(ResNet3d(18, base_channels=8, **kwargs), original.state_dict(), source='mmaction2')


def pre_activation_resnet(conv):
    return ResNetV2(
        layers=[2, 2], channels=(128, 256), stem_chs=32, num_classes=3, stem_type='fixed', conv_layer=conv
    )  # fmt: skip


def test_bit_arrays_become_what_timms_own_loader_makes_of_them(tmp_path):
    arrays = bit_arrays(widths=(32, 64))
    np.savez(tmp_path / 'bit.npz', **arrays)
    theirs = pre_activation_resnet(StdConv2d)
    theirs.load_pretrained(str(tmp_path / 'bit.npz'))
    ours = pre_activation_resnet(partial(WSConv2d, variant='bit', bias=False))
    imported = load(ours, {key: torch.from_numpy(array) for key, array in arrays.items()})
    assert imported.source == 'bit'
    assert not any(imported.match[2:])
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in ours.state_dict().items())


def test_bit_filters_are_refused_where_norms_follow():
    ours = resnet(50, conv=dict(type='WSConv2d', variant='bit'), norm=dict(type='GN', num_groups=32))
    with pytest.raises(ValueError, match=r'^BiT networks have norm and ReLU before each convolution'):
        load(ours, {key: torch.from_numpy(array) for key, array in bit_arrays().items()})
    names = canonical_names(from_bit({key: torch.from_numpy(array) for key, array in bit_arrays().items()}))
    assert set(names.values()) & set(canonical_names(ours.state_dict()).values()) == {'conv1.conv.weight'}


def test_a_batch_norm_file_enters_a_bcn_model_only_on_request():
    theirs = randomize_(torchvision.models.resnet18()).state_dict()
    ours = resnet(conv=dict(type='WSConv2d'), norm=BCN)
    with pytest.raises(ValueError, match=r'is bn, the model bcn-ws: 20 x conv plain .* WS .*; 20 x norm BN .* BCN'):
        load(ours, theirs)
    imported = load(ours, theirs, allow_mismatch=True)
    assert imported.comparison.verdict == 'mismatch'
    assert imported.fingerprint['bn1'] == {'norm': 'BN', 'eps': 1e-5}
    assert torch.equal(ours.layer1[0].bn1.running_mean, theirs['layer1.0.bn1.running_mean'])
    assert ours.layer1[0].bn1.group_weight.eq(1).all()
    assert 'set to neutral values: 20 group_weight = 1, 20 group_bias = 0' in imported.match.describe()


def test_less_than_nine_tenths_of_the_backbone_is_refused_with_a_table():
    theirs = randomize_(torchvision.models.resnet18(num_classes=5)).state_dict()
    theirs = {key: tensor for key, tensor in theirs.items() if not key.startswith('layer3.1.')}
    theirs['conv1.weight'] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(ValueError, match='backbone') as refused:
        load(resnet(), theirs)
    assert str(refused.value).splitlines() == [
        'only 89 % of the backbone would be loaded, at least 90 % are required:',
        'stage   matched  missing  misshapen  left over',
        'stem          5        0          1          0',
        'layer1       24        0          0          0',
        'layer2       30        0          0          0',
        'layer3       18       12          0          0',
        'layer4       30        0          0          0',
        'fc            0        0          0          2',
        'missing in the file: layer3.1.conv1.weight, layer3.1.bn1.weight, layer3.1.bn1.bias, layer3.1.bn1.running_mean'
        ', layer3.1.bn1.running_var, layer3.1.bn1.num_batches_tracked, layer3.1.conv2.weight, layer3.1.bn2.weight, '
        'layer3.1.bn2.bias, layer3.1.bn2.running_mean, layer3.1.bn2.running_var, layer3.1.bn2.num_batches_tracked',
        'of another shape: conv1.weight (64, 1, 7, 7), must be (64, 3, 7, 7)',
        'left over in the file: fc.weight, fc.bias',
    ]


def test_sources_that_do_not_fit_the_file_are_refused():
    theirs = torchvision.models.resnet18().state_dict()
    text = "source='jhu-gn-ws' has GN, but the file has BN: name the source that wrote it"
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        load(resnet(norm=dict(type='GN', num_groups=32)), theirs, source='jhu-gn-ws')
    with pytest.raises(ValueError, match=r"^source='timm': one of bcn-deeplab, bcn-imagenet, jhu-gn-ws"):
        load(resnet(), theirs, source='timm')
    strange = {'0.weight': torch.zeros(3, 3, 3, 3), '1.running_mean': torch.zeros(3), '1.weight': torch.zeros(3)}
    message = 'the checkpoint and the model have no layer in common: the checkpoint has 0, 1, the model conv1'
    with pytest.raises(ValueError, match=f'^{message}'):
        load(resnet(), strange, source='torchvision')


def test_every_source_has_a_norm_and_a_known_variant():
    assert {source.norm for source in SOURCES.values()} == {'BN', 'GN', 'BCN'}
    assert {source.variant for source in SOURCES.values()} == {None, 'jhu', 'bcn', 'bit'}
    with pytest.raises(ValueError, match=r'\(norm: none\)'):
        identify({'fc.weight': torch.zeros(3, 3)})


@pytest.mark.parametrize(
    ('key', 'name'),
    [
        ('conv1.weight', 'conv1.conv.weight'),
        ('bn1.running_var', 'conv1.norm.running_var'),
        ('layer3.10.gn3.bias', 'layer3.10.conv3.norm.bias'),
        ('module.layer2.0.downsample.0.weight', 'layer2.0.downsample.conv.weight'),
        ('backbone.layer2.0.downsample.1.group_weight', 'layer2.0.downsample.norm.group_weight'),
        ('backbone.layer1.0.conv1.gn.weight', 'layer1.0.conv1.norm.weight'),
        ('layer1.0.conv1.conv.bn_s.weight', 'layer1.0.conv1.conv.norm_s.weight'),
        ('decode_head.bottleneck.bn.bias', 'decode_head.bottleneck.norm.bias'),
        ('cls_head.fc_cls.bias', 'fc.bias'),
        ('fc.weight', 'fc.weight'),
    ],
)
def test_canonical_names(key, name):
    assert canonical_names([key]) == {key: name}


@pytest.mark.parametrize('name', ['r3d_18', 'r2plus1d_18', 'mc3_18'])
def test_no_two_keys_of_a_network_share_a_name(name):
    state = getattr(torchvision.models.video, name)().state_dict()
    names = canonical_names(state)
    assert len(set(names.values())) == len(state)
    assert {stage_of(name) for name in names.values()} == {'stem', 'layer1', 'layer2', 'layer3', 'layer4', 'fc'}


def test_shortcuts_behind_a_pool_are_convolution_and_norm():
    names = canonical_names(['layer2.0.downsample.1.weight', 'layer2.0.downsample.2.weight'])
    assert list(names.values()) == ['layer2.0.downsample.conv.weight', 'layer2.0.downsample.norm.weight']


def test_joining_halves_does_not_change_other_files():
    state = torchvision.models.resnet18().state_dict()
    assert join_norm_halves(state).keys() == state.keys()
    assert match(state, state).state.keys() == state.keys()
