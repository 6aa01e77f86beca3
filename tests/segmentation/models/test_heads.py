import pytest
import torch
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import wsbcn_mm.segmentation  # noqa: F401
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d

NORMS = {
    'bn': dict(norm_cfg=dict(type='BN')),
    'gn': dict(norm_cfg=dict(type='GN', num_groups=4)),
    'gn-ws': dict(conv_cfg=dict(type='WSConv2d'), norm_cfg=dict(type='GN', num_groups=4)),
    'bcn-ws': dict(conv_cfg=dict(type='WSConv2d'), norm_cfg=dict(type='BCN', num_groups=4)),
}
HEADS = {
    'v3': dict(type='DeepLabV3Head'),
    'v3 1x1': dict(type='DeepLabV3Head', bottleneck_kernel_size=1),
    'v3plus': dict(type='DeepLabV3PlusHead', c1_in_channels=16, c1_channels=16),
}


def build(head: str, norm: str, **kwargs) -> nn.Module:
    return MODELS.build(
        dict(HEADS[head], in_channels=24, in_index=1, channels=32, num_classes=5, dilations=(1, 2, 3))
        | NORMS[norm]
        | kwargs
    )


def features(crop: int, batch: int = 1) -> list[Tensor]:
    low, high = -(-crop // 4), -(-crop // 16)
    return [torch.randn(batch, 16, low, low), torch.randn(batch, 24, high, high)]


def convs(head: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in head.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize(('head', 'standardised'), [('v3', 5), ('v3 1x1', 5), ('v3plus', 12)])
def test_every_conv_but_the_classifier_is_standardised(head: str, standardised: int) -> None:
    found = convs(build(head, 'bcn-ws'))
    plain = [name for name, conv in found.items() if not isinstance(conv, WSConv2d)]
    assert plain == ['conv_seg']
    assert type(found['conv_seg']) is nn.Conv2d
    assert len(found) == standardised + 1


def test_separable_convs_of_v3plus_keep_their_geometry() -> None:
    ours = convs(build('v3plus', 'bn'))
    stock = convs(
        MODELS.build(
            dict(
                type='DepthwiseSeparableASPPHead',
                in_channels=24,
                in_index=1,
                channels=32,
                num_classes=5,
                dilations=(1, 2, 3),
                c1_in_channels=16,
                c1_channels=16,
                norm_cfg=dict(type='BN'),
            )
        )
    )
    assert {name: str(conv) for name, conv in ours.items()} == {name: str(conv) for name, conv in stock.items()}


def test_bottleneck_is_1x1_on_request_and_still_gives_the_same_map() -> None:
    head = build('v3 1x1', 'bn')
    assert head.bottleneck.conv.weight.shape == (32, 4 * 32, 1, 1)
    assert head.bottleneck.with_norm
    assert build('v3', 'bn').bottleneck.conv.weight.shape == (32, 4 * 32, 3, 3)
    assert head.eval()(features(65)).shape == (1, 5, 5, 5)


def test_even_bottleneck_is_refused() -> None:
    with pytest.raises(ValueError, match=r'bottleneck_kernel_size=2: a positive odd number is expected'):
        build('v3', 'bn', bottleneck_kernel_size=2)


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('norm', NORMS)
def test_image_pool_without_norm_has_a_plain_conv_with_bias(head: str, norm: str) -> None:
    pool = build(head, norm, image_pool_norm=False).image_pool[1]
    assert type(pool.conv) is nn.Conv2d
    assert pool.conv.bias is not None
    assert not pool.with_norm
    assert not any(isinstance(m, (_BatchNorm, nn.GroupNorm, BatchChannelNorm)) for m in pool.modules())


@pytest.mark.parametrize('crop', [33, 65, 129])
@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('norm', ['gn', 'gn-ws', 'bcn-ws'])
def test_one_image_trains(head: str, norm: str, crop: int) -> None:
    torch.manual_seed(0)
    model = build(head, norm).train()
    model(features(crop)).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert all(g.abs().sum() > 0 for name, g in gradients.items() if name.endswith('conv.weight'))


@pytest.mark.parametrize('head', HEADS)
def test_one_image_trains_with_bn_once_the_image_pool_has_no_norm(head: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
        build(head, 'bn').train()(features(33))
    model = build(head, 'bn', image_pool_norm=False).train()
    model(features(33)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
