from types import SimpleNamespace

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmseg.registry import HOOKS, MODELS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.segmentation.models.checks import check_norms, norms_at_1x1, smallest_batch

BN_MESSAGE = (
    'norm `decode_head.image_pool.1.bn` sees a 1x1 map at batch 1: BatchNorm is undefined there. '
    "Use type='BCN' or 'GN' with >=8 channels per group, or leave the image pooling branch without a norm "
    '(image_pool_norm=False in the decode head)'
)


def model(norm_cfg: dict, channels: int = 32, **kwargs) -> nn.Module:
    head = MODELS.build(
        dict(
            type='DeepLabV3Head',
            in_channels=8,
            in_index=0,
            channels=channels,
            num_classes=3,
            norm_cfg=norm_cfg,
            **kwargs,
        )
    )
    return nn.ModuleDict(dict(decode_head=head))


def loader(images: int, batch: int, sampler: str = 'default', drop_last: bool = False) -> DataLoader:
    data = TensorDataset(torch.zeros(images))
    kind = DefaultSampler if sampler == 'default' else InfiniteSampler
    return DataLoader(data, batch_size=batch, sampler=kind(data), drop_last=drop_last)


def runner(net: nn.Module, batches: DataLoader, world_size: int = 1) -> SimpleNamespace:
    return SimpleNamespace(model=net, train_dataloader=batches, world_size=world_size)


@pytest.mark.parametrize(
    ('norm_cfg', 'batch', 'world_size'),
    [
        (dict(type='BN'), 1, 1),
        (dict(type='BN'), 1, 8),
        (dict(type='SyncBN'), 1, 1),
        (dict(type='BCN', num_groups=4, statistics='batch'), 1, 8),
        (dict(type='BCN', num_groups=4, statistics='sync'), 1, 1),
    ],
)
def test_batch_statistics_of_one_value_are_refused_with_the_remedy(norm_cfg: dict, batch: int, world_size: int) -> None:
    with pytest.raises(ValueError, match='BatchNorm is undefined there') as error:
        check_norms(model(norm_cfg), batch, world_size)
    assert str(error.value) == BN_MESSAGE


@pytest.mark.parametrize(
    ('norm_cfg', 'batch', 'world_size'),
    [
        (dict(type='BN'), 2, 1),
        (dict(type='SyncBN'), 1, 2),
        (dict(type='BCN', num_groups=4, statistics='sync'), 1, 2),
        (dict(type='BCN', num_groups=4), 1, 1),
        (dict(type='GN', num_groups=4), 1, 1),
    ],
)
def test_norms_that_are_defined_pass(
    norm_cfg: dict, batch: int, world_size: int, recwarn: pytest.WarningsRecorder
) -> None:
    net = model(norm_cfg)
    recwarn.clear()
    check_norms(net, batch, world_size)
    assert not recwarn.list


def test_bn_passes_without_a_norm_in_the_image_pool() -> None:
    net = model(dict(type='BN'), image_pool_norm=False)
    assert list(norms_at_1x1(net)) == []
    check_norms(net, 1)


@pytest.mark.parametrize('kind', ['GN', 'BCN'])
def test_groups_too_small_for_a_1x1_map(kind: str) -> None:
    name = f'decode_head.image_pool.1.{"gn" if kind == "GN" else "bn"}'
    with pytest.raises(ValueError, match='1x1 map') as error:
        check_norms(model(dict(type=kind, num_groups=32)), 2)
    assert str(error.value) == (
        f'norm `{name}` sees a 1x1 map with 1 channel per group: every output is its bias there. '
        'Use >=8 channels per group, or leave the image pooling branch without a norm '
        '(image_pool_norm=False in the decode head)'
    )
    with pytest.warns(UserWarning, match='with 4 channels per group: fewer than 8 leave little of the signal'):
        check_norms(model(dict(type=kind, num_groups=8)), 1)


def test_only_the_norm_behind_global_pooling_is_looked_at() -> None:
    names = dict(norms_at_1x1(model(dict(type='BCN', num_groups=4))))
    assert list(names) == ['decode_head.image_pool.1.bn']
    assert isinstance(names['decode_head.image_pool.1.bn'], BatchChannelNorm)
    assert not list(norms_at_1x1(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(4))))


def test_standardised_conv_without_a_norm_is_refused() -> None:
    net = nn.ModuleDict(dict(neck=ConvModule(4, 4, 3, conv_cfg=dict(type='WSConv2d'))))
    with pytest.raises(ValueError, match='without a norm') as error:
        check_norms(net, 2)
    assert str(error.value) == (
        'convolution `neck.conv` is a WSConv2d without a norm after it: its output would be about sqrt(fan-in) times '
        'too large. Give it a norm_cfg or leave out its conv_cfg'
    )


@pytest.mark.parametrize(
    ('batches', 'smallest'),
    [
        (loader(5, 2), 1),
        (loader(5, 2, drop_last=True), 2),
        (loader(4, 2), 2),
        (loader(5, 2, sampler='infinite'), 2),
    ],
    ids=['partial', 'dropped', 'even', 'infinite'],
)
def test_smallest_batch(batches: DataLoader, smallest: int) -> None:
    assert smallest_batch(batches) == smallest


def test_hook_stops_a_last_batch_of_one_before_training() -> None:
    hook = HOOKS.build(dict(type='NormCheckHook'))
    net = model(dict(type='BN'))
    hook.before_train(runner(net, loader(4, 2)))
    with pytest.raises(ValueError, match='BatchNorm is undefined there'):
        hook.before_train(runner(net, loader(5, 2)))
    hook.before_train(runner(model(dict(type='SyncBN')), loader(16, 1), world_size=8))
