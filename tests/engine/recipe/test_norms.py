"""--norm on recipes: every layer changes, no key of the old norm stays, and parts that drop keys are rejected."""

import re
from collections import Counter
from pathlib import Path

import mmseg
import pytest
from mmengine.config import Config

from wsbcn_mm.engine.recipe.model import build_model, census_of_recipe, input_shape
from wsbcn_mm.engine.recipe.norms import (
    check_layer_configs,
    exchange_pretrained,
    norm_config,
    parts_with_norm,
    switch_norm,
)
from wsbcn_mm.engine.recipe.tree import drop_pretrained
from wsbcn_mm.surgery.census import breaches
from wsbcn_mm.surgery.kinds import count_convs, count_norms
from wsbcn_mm.surgery.policies import POLICIES, get_policy

CONFIGS = Path(__file__).parents[3] / 'configs'
FRAGMENTS = CONFIGS / '_base_' / 'norms'
DEEPLAB = 'deeplabv3plus/deeplabv3plus_r50-d8_gn-ws_1xb1-acc8-80k_cityscapes-512x1024.py'
VIDEO = 'resnet3d/r2plus1d-18_bn_8xb2-acc4-188k_kinetics400-16x4x1-112x112.py'
TINY = 'tiny/deeplabv3_r18-tiny_gn-ws_1xb1-acc16-150_digits-64x64.py'
NORMS = [*POLICIES, 'bcn-ws-backbone', 'gn-ws-backbone']


def load(recipe):
    return Config.fromfile(CONFIGS / recipe)


def test_every_policy_has_its_fragment():
    assert sorted(path.stem for path in FRAGMENTS.glob('*.py')) == sorted(POLICIES)


@pytest.mark.parametrize(
    ('recipe', 'norm', 'norms', 'convs', 'classifiers'),
    [
        (DEEPLAB, 'bcn-ws-backbone', 68, 53, 2),
        (VIDEO, 'bcn-ws', 37, 37, 0),
        *((TINY, norm, 24, 20, 2) for norm in NORMS),
    ],
)
def test_a_switched_recipe_matches_its_name(recipe, norm, norms, convs, classifiers):
    """`convs`: convolutions of the backbone with a norm after them."""
    cfg, policy = load(recipe), get_policy(norm)
    report = switch_norm(cfg, norm, FRAGMENTS)
    model = build_model(cfg)
    assert count_norms(model) == Counter({policy.norm: norms})
    ws = (convs if policy.ws_within else norms) if policy.ws else 0
    expected = {'WS': ws, 'plain': norms + classifiers - ws}
    assert count_convs(model) == Counter({kind: n for kind, n in expected.items() if n})
    assert report[0].endswith(f' -> {norms} {policy.norm}')
    assert 'model.backbone' in report[2]
    # The dumped config has no trace of the old norm.
    assert not re.search(r"'type': '(BN3d)'", repr(cfg.model)) or norm in ('bn', 'bn-ws')
    switch_norm(cfg, norm, FRAGMENTS)
    assert count_norms(build_model(cfg)) == count_norms(model)


@pytest.mark.parametrize('folder', ['deeplabv3', 'deeplabv3plus', 'resnet3d', 'tiny'])
def test_shipped_recipes_have_no_stale_key_and_name_all_parts(folder):
    for path in sorted((CONFIGS / folder).glob('*.py')):
        cfg = Config.fromfile(path)
        check_layer_configs(cfg)
        parts = dict(parts_with_norm(cfg.model))
        heads = {f'model.{name}' for name in ('decode_head', 'auxiliary_head') if name in cfg.model}
        assert set(parts) == {'model.backbone', *heads}, path.name


def test_the_report_lists_old_and_new_layers():
    cfg = load('deeplabv3/deeplabv3_r50-d8_bcn-ws_1xb1-acc8-80k_cityscapes-512x1024.py')
    assert switch_norm(cfg, 'syncbn', FRAGMENTS) == [
        'norms: 60 BCN -> 60 SyncBN',
        'convolutions: 60 WS, 2 plain -> 62 plain',
        'rewritten: model.backbone, model.decode_head, model.auxiliary_head',
        'dropped, not keys of the new norm: num_groups=32, rate=0.1, warmup=True',
        'pretrained weights: pretrained/resnet50_bcn_ws.pth -> pretrained/resnet50_bn.pth',
    ]
    assert cfg.norm_cfg == dict(type='SyncBN')
    assert cfg.conv_cfg_3d == dict(type='Conv3d')
    assert cfg.model.backbone.conv_cfg == dict(type='Conv2d')


def test_groups_of_the_recipe_stay_unless_others_are_asked_for():
    cfg = load(TINY)
    switch_norm(cfg, 'bcn-ws', FRAGMENTS)
    assert cfg.model.backbone.norm_cfg == dict(type='BCN', num_groups=8, rate=0.1, warmup=True)
    switch_norm(cfg, 'gn', FRAGMENTS, num_groups=4)
    assert cfg.model.decode_head.norm_cfg == dict(type='GN', num_groups=4)
    cfg = load(TINY.replace('gn-ws', 'bn'))
    with pytest.raises(ValueError, match='num_groups=32: a divisor of num_features=16 is expected'):
        switch_norm(cfg, 'bcn-ws', FRAGMENTS)


@pytest.mark.parametrize(
    ('old', 'wanted', 'new'),
    [
        (dict(type='BN', requires_grad=False, momentum=0.01), dict(type='GN', num_groups=32),
         dict(type='GN', num_groups=32, requires_grad=False)),
        (dict(type='BN', eps=1e-3), dict(type='SyncBN'), dict(type='SyncBN', eps=1e-3)),
        (dict(type='BN', momentum=0.01), dict(type='BN'), dict(type='BN', momentum=0.01)),
        (dict(type='BCN', num_groups=8, rate=0.02), dict(type='BCN', num_groups=32, rate=0.1, warmup=True),
         dict(type='BCN', num_groups=8, rate=0.02, warmup=True)),
        (dict(type='BCN', num_groups=8, statistics='sync'), dict(type='BCN', num_groups=32, rate=0.1),
         dict(type='BCN', num_groups=8, rate=0.1)),
        (dict(type='BCN', rate=0.02), dict(type='BCN', statistics='sync'),
         dict(type='BCN', statistics='sync', rate=0.02)),
        (dict(type='BCN', rate=0.02, warmup=True), dict(type='BCN', statistics='sync'),
         dict(type='BCN', statistics='sync', rate=0.02)),
        (dict(type='BCN', rate=0.02, warmup=False), dict(type='BCN', num_groups=32, rate=0.1, warmup=True),
         dict(type='BCN', num_groups=32, rate=0.02, warmup=False)),
    ],
)  # fmt: skip
def test_keys_of_a_norm_cfg_that_stay(old, wanted, new):
    assert norm_config(old, wanted, None) == new


def stock_config():
    """Return a user's mmsegmentation recipe without any conv_cfg."""
    norm = dict(type='SyncBN', requires_grad=True)
    head = dict(channels=64, num_classes=5, align_corners=False, norm_cfg=norm)
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
                backbone=dict(type='ResNetV1c', depth=18, norm_cfg=norm),
                decode_head=dict(type='ASPPHead', in_channels=512, in_index=3, dilations=(1, 2), **head),
                auxiliary_head=[
                    dict(type='FCNHead', in_channels=c, in_index=i, num_convs=1, **head)
                    for i, c in ((1, 128), (2, 256))
                ],
                test_cfg=dict(mode='whole'),
            ),
        )
    )


SHIPPED = Path(mmseg.__file__).parent / '.mim' / 'configs'


@pytest.mark.parametrize(
    'name', ['pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512.py', 'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py']
)
def test_a_config_that_mmsegmentation_ships_is_switched_as_it_is(name):
    cfg = Config.fromfile(SHIPPED / name)
    report = switch_norm(cfg, 'bcn-ws')
    assert report[3] == (
        'model.backbone.zero_init_residual=False: the host would zero the weight of BCN, which is not its output scale'
    )
    assert cfg.model.backbone.zero_init_residual is False
    assert cfg.model.pretrained == 'open-mmlab://resnet50_v1c'  # Building the model twice must not change the config.
    assert cfg.model.backbone.get('pretrained') is None
    drop_pretrained(cfg)
    assert cfg.model.pretrained is None
    switched = Config.fromfile(SHIPPED / name)
    assert 'zero_init_residual' not in '\n'.join(switch_norm(switched, 'gn-ws'))


def test_a_recipe_of_a_user_without_conv_cfg_gets_one():
    cfg = stock_config()
    report = switch_norm(cfg, 'gn-ws', FRAGMENTS)
    assert report[2] == ('rewritten: model.backbone, model.decode_head, model.auxiliary_head.0, model.auxiliary_head.1')
    assert cfg.model.auxiliary_head[1].norm_cfg == dict(type='GN', num_groups=32, requires_grad=True)
    assert cfg.model.auxiliary_head[1].conv_cfg == dict(type='WSConv2d')
    found, shape = census_of_recipe(cfg)
    assert breaches(found, get_policy('gn-ws')) == []
    assert shape == (1, 3, 64, 64)
    assert len(found.left_out) == 3
    switch_norm(cfg, 'gn', FRAGMENTS)
    assert count_convs(build_model(cfg)).keys() == {'plain'}


def test_a_head_that_does_not_pass_its_conv_cfg_on_is_rejected():
    """mmseg's own head of DeepLabV3+ passes it to 4 of its 14 normalised convolutions."""
    cfg = stock_config()
    cfg.model.decode_head.update(type='DepthwiseSeparableASPPHead', c1_in_channels=64, c1_channels=32)
    with pytest.raises(
        ValueError,
        match=r'^--norm bn-ws does not reach every layer: \d+ convolutions have a norm after them but no Weight '
        r'Standardization \(the first: decode_head\.aspp_modules\.1\.depthwise_conv\.conv\)$',
    ):
        switch_norm(cfg, 'bn-ws', FRAGMENTS)
    switch_norm(stock_config(), 'bn-ws-backbone', FRAGMENTS)


@pytest.mark.parametrize(
    ('part', 'key', 'layer', 'message'),
    [
        ('backbone', 'norm_cfg', dict(type='BN', num_groups=32),
         'BN does not accept num_groups: remove keys of another layer'),
        ('decode_head', 'norm_cfg', dict(type='GN', num_groups=32, momentum=0.1, rate=0.1),
         'GN does not accept momentum, rate: remove keys of another layer'),
        ('backbone', 'conv_cfg', dict(type='Conv2d', variant='bit'),
         'Conv2d does not accept variant: remove keys of another layer'),
        ('decode_head', 'norm_cfg', dict(type='BNC'), "no layer is registered as 'BNC'"),
        ('backbone', 'conv_cfg', dict(type='Conv2dAdaptivePadding'),
         "'Conv2dAdaptivePadding' is neither a plain nor a standardised convolution"),
    ],
)  # fmt: skip
def test_stale_and_unknown_keys_are_rejected(part, key, layer, message):
    cfg = stock_config()
    cfg.model[part][key] = layer
    for check in (check_layer_configs, lambda cfg: switch_norm(cfg, 'gn', FRAGMENTS)):
        with pytest.raises(ValueError, match=f'^{re.escape(f"model.{part}.{key}: {message}")}$'):
            check(cfg)


def test_keys_of_the_layers_are_accepted():
    cfg = stock_config()
    cfg.model.backbone.norm_cfg = dict(type='BCN', num_groups=32, rate=0.1, warmup=True, affine='channel', eps=1e-3)
    cfg.model.backbone.conv_cfg = dict(type='WSConv2d', variant='bit', eps=1e-6, padding_mode='reflect')
    check_layer_configs(cfg)


def test_an_unknown_norm_and_a_model_without_norms_are_rejected():
    with pytest.raises(ValueError, match=r"^norm policy 'bncws': one of bn, "):
        switch_norm(stock_config(), 'bncws', FRAGMENTS)
    cfg = stock_config()
    cfg.model.pop('auxiliary_head')
    for part in ('backbone', 'decode_head'):
        cfg.model[part].pop('norm_cfg')
    with pytest.raises(ValueError, match=r'^the model of this recipe has no norm_cfg: --norm needs one$'):
        switch_norm(cfg, 'gn', FRAGMENTS)


@pytest.mark.parametrize(
    ('file', 'norm', 'new'),
    [
        ('pretrained/resnet50_bn.pth', 'bcn-ws', 'pretrained/resnet50_bcn_ws.pth'),
        ('pretrained/resnet50_bn_ws.pth', 'syncbn', 'pretrained/resnet50_bn.pth'),
        ('pretrained/resnet101_gn.pth', 'bcnsync-ws', 'pretrained/resnet101_bcn_ws.pth'),
        ('pretrained/resnet50_bn.pth', 'gn-ws-backbone', 'pretrained/resnet50_gn_ws.pth'),
        ('https://example.org/resnet50_v1c.pth', 'gn-ws', 'https://example.org/resnet50_v1c.pth'),
    ],
)
def test_pretrained_files_with_a_norm_in_their_name_follow_the_norm(file, norm, new):
    cfg = stock_config()
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=file)
    assert exchange_pretrained(cfg, norm) == ({} if file == new else {file: new})
    assert cfg.model.backbone.init_cfg.checkpoint == new


@pytest.mark.parametrize(
    ('recipe', 'shape'),
    [
        (DEEPLAB, (1, 3, 512, 1024)),
        (VIDEO, (2, 1, 3, 16, 112, 112)),
        ('resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-67k_sthv1-8seg-224x224.py', (1, 1, 3, 8, 224, 224)),
        ('resnet3d/i3d-r50_gn-ws_1xb1-acc64-188k_kinetics400-32x2x1-224x224.py', (1, 1, 3, 32, 224, 224)),
        (TINY, (1, 3, 64, 64)),
        ('tiny/r3d-18-tiny_gn_1xb16-acc1-150_motion-8x40x40.py', (16, 1, 3, 8, 112, 112)),
    ],
)
def test_the_shape_of_a_recipes_input(recipe, shape):
    assert input_shape(load(recipe)) == shape


def test_a_recipe_without_a_size_is_rejected():
    cfg = stock_config()
    cfg.model.data_preprocessor.pop('size')
    with pytest.raises(ValueError, match=r'^the recipe does not give the size of its inputs: set --input-shape$'):
        input_shape(cfg)
