"""On a still video, the inflated network must give the 2D network's output."""

import re
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
import torchvision
from mmcv.cnn import is_norm
from mmengine.registry import DefaultScope
from mmseg.models.backbones import ResNet
from torch import Tensor, nn

import wsbcn_mm  # noqa: F401  registers the layers
from wsbcn_mm.layers import WSConv3d
from wsbcn_mm.ops import weight_standardize
from wsbcn_mm.video.models.inflation import inflate_2d_, ws_response
from wsbcn_mm.video.models.resnet3d import ResNet3d

# Circular padding: zeros before the first and after the last frame would not be part of a still video.
CONV = {'type': 'Conv3d', 'padding_mode': 'circular'}
WS = {'type': 'WSConv3d', 'padding_mode': 'circular'}
NORMS = {
    'bn': (CONV, {'type': 'BN3d'}),
    'gn': (CONV, {'type': 'GN', 'num_groups': 4}),
    'gn-ws': (WS, {'type': 'GN', 'num_groups': 4}),
    'bn-ws': (WS, {'type': 'BN3d'}),
    'bn-ws-timm': (WS | {'variant': 'timm'}, {'type': 'BN3d'}),
    'bn-ws-gain': (WS | {'gain': 'fan_in'}, {'type': 'BN3d'}),
    'bcn-ws': (WS, {'type': 'BCN', 'num_groups': 4}),
    'bcnsync-ws': (WS, {'type': 'BCN', 'num_groups': 4, 'statistics': 'sync'}),
}
FLAT = {'conv1_kernel': (1, 7, 7), 'inflate': (0, 0, 0, 0)}
SHAPES = {
    'i3d': {'conv1_kernel': (5, 7, 7), 'inflate': (1, 1, (1, 0, 1, 0, 1, 0), 1), 'inflate_style': '3x1x1'},
    'r3d': {'inflate_style': '3x3x3'},
    'slowonly': {'conv1_kernel': (1, 7, 7), 'inflate': (0, 0, 1, 1), 'inflate_style': '3x1x1'},
}


def build(norm: str, depth: int = 50, **kwargs) -> ResNet3d:
    conv_cfg, norm_cfg = NORMS[norm]
    return ResNet3d(
        depth,
        base_channels=8,
        with_pool1=True,
        temporal_strides=(1, 1, 1, 1),
        conv_cfg=conv_cfg,
        norm_cfg=norm_cfg,
        **kwargs,
    )


def trained_2d_network(norm: str, depth: int = 50) -> ResNet3d:
    """A ResNet without temporal kernels, with randomised weights and the statistics of a batch."""
    torch.manual_seed(0)
    net = build(norm, depth, **FLAT).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.rand_like(parameter) * parameter.std().clamp_min(0.1))
        for layer in (m for m in net.modules() if is_norm(m)):
            layer.momentum = 1.0
        net(torch.randn(4, 3, 1, 64, 64, dtype=torch.float64) + 1)
    return net.eval()


def as_2d_state(net: ResNet3d) -> dict[str, Tensor]:
    """The state with the names and shapes of a 2D ResNet."""
    state = {}
    for name, tensor in net.state_dict().items():
        name = re.sub(r'downsample\.conv\.', 'downsample.0.', name)
        name = re.sub(r'downsample\.(?:bn|gn)\.', 'downsample.1.', name)
        name = re.sub(r'conv(\d)\.conv\.', r'conv\1.', name)
        name = re.sub(r'conv(\d)\.(?:bn|gn)\.', r'bn\1.', name)
        state[name] = tensor.squeeze(2) if tensor.ndim == 5 else tensor
    return state


TEMPORAL = {'i3d': 1 + 3 + 4 + 3 + 3, 'r3d': 1 + 16, 'slowonly': 6 + 3}
"""Convolutions that see more than one frame: the stem and those of the inflated blocks."""


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('shape', SHAPES)
def test_a_still_video_is_answered_as_the_picture(norm, shape):
    flat = trained_2d_network(norm)
    inflated = build(norm, **SHAPES[shape]).double().eval()
    report = inflate_2d_(inflated, as_2d_state(flat))
    assert len(report.inflated) == TEMPORAL[shape]
    assert len(report.inflated) + len(report.copied) == len(report.norms) == 53
    assert len(report.rescaled) == (TEMPORAL[shape] if norm.startswith(('bn-ws', 'bcn')) else 0)
    assert report.left == report.defaults == []
    picture = torch.randn(2, 3, 1, 64, 64, dtype=torch.float64) + 1
    with torch.no_grad():
        expected = flat(picture)
        out = inflated(picture.expand(-1, -1, 6, -1, -1))
    # GN's eps leaves a difference; running statistics account for it.
    tolerance = 1e-4 if norm.startswith('gn') else 1e-9
    torch.testing.assert_close(
        out, expected.expand_as(out), rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


def see_the_still_beyond_the_ends_(net: ResNet3d) -> None:
    """Pad every convolution in time with copies of the first and the last frame, not with zeros."""
    for conv in net.modules():
        if isinstance(conv, nn.Conv3d) and conv.padding[0]:
            frames = conv.padding[0]
            conv.padding = (0, *conv.padding[1:])
            conv.register_forward_pre_hook(
                lambda module, args, t=frames: (F.pad(args[0], (0, 0, 0, 0, t, t), mode='replicate'),)
            )


@pytest.mark.parametrize('norm', ['bn', 'gn', 'gn-ws', 'bcn-ws'])
@pytest.mark.parametrize('depth', [18, 50])
def test_the_inflation_of_mmsegs_2d_resnet_gives_its_output(norm, depth):
    """mmseg's own 2D definition, in single precision, with zero padding and strides in space."""
    conv, norm_cfg = ({k: v for k, v in cfg.items() if k != 'padding_mode'} for cfg in NORMS[norm])
    conv_2d = {'type': conv['type'].replace('3d', '2d')}
    norm_2d = {**norm_cfg, 'type': norm_cfg['type'].replace('3d', '')}
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        flat = ResNet(
            depth=depth, base_channels=8, stem_channels=8, conv_cfg=conv_2d, norm_cfg=norm_2d, style='pytorch',
            strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), zero_init_residual=False,
        )  # fmt: skip
    for layer in (m for m in flat.modules() if is_norm(m)):
        layer.momentum = 1.0
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.2)
    with torch.no_grad():
        flat(torch.randn(4, 3, 64, 48) + 1)
    flat.eval()
    inflated = ResNet3d(
        depth, base_channels=8, conv1_kernel=(5, 7, 7), with_pool1=True, temporal_strides=(1, 2, 1, 1),
        conv_cfg=conv, norm_cfg=norm_cfg,
    ).eval()  # fmt: skip
    inflate_2d_(inflated, flat.state_dict())
    see_the_still_beyond_the_ends_(inflated)
    picture = torch.randn(2, 3, 64, 48) + 1
    with torch.no_grad():
        expected = flat(picture)[-1].unsqueeze(2)
        out = inflated(picture.unsqueeze(2).expand(-1, -1, 4, -1, -1))
    assert out.shape[2] == 2
    torch.testing.assert_close(out, expected.expand_as(out), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize('variant', ['jhu', 'bcn', 'paper', 'timm', 'bit'])
@pytest.mark.parametrize('std', [1.0, 1e-3, 1e-5])
def test_every_channel_answers_a_still_by_the_same_factor_however_small_its_filter(variant, std):
    """With filters near the scale of eps, only repeating them would scale each channel by a different factor."""
    torch.manual_seed(0)
    conv = WSConv3d(3, 6, (3, 2, 2), bias=False, variant=variant, dtype=torch.float64)
    flat = std * torch.logspace(-1, 1, 6, dtype=torch.float64).view(-1, 1, 1, 1) * torch.randn(6, 3, 2, 2)
    scale, response = ws_response(conv)
    with torch.no_grad():
        conv.weight.copy_((scale * flat).unsqueeze(2))
    expected = response * weight_standardize(flat, variant=variant)
    torch.testing.assert_close(conv.standardized_weight().sum(2).detach(), expected, rtol=1e-12, atol=1e-12)
    unbiased = variant in ('jhu', 'bcn')
    assert response == pytest.approx(3 * sqrt((36 - 1) / (3 * (12 - 1))) if unbiased else 3)


def test_basic_blocks_inflate_too():
    flat = trained_2d_network('bn-ws', depth=18)
    inflated = build('bn-ws', depth=18).double().eval()
    inflate_2d_(inflated, as_2d_state(flat))
    picture = torch.randn(1, 3, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = flat(picture)
        out = inflated(picture.expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(out, expected.expand_as(out), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_init_cfg_inflates_torchvisions_resnet_and_names_what_it_left(tmp_path, monkeypatch):
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / 'resnet18.pth')
    said: list[str] = []
    monkeypatch.setattr('wsbcn_mm.video.models.inflation.print_log', lambda text, logger: said.append(text))
    net = ResNet3d(18, init_cfg={'type': 'Inflated2d', 'checkpoint': str(tmp_path / 'resnet18.pth')})
    net.init_weights()
    assert said == [
        f'{tmp_path}/resnet18.pth: 17 convolutions inflated and 3 copied; 20 norms copied, '
        'the statistics of 0 rescaled; left in the checkpoint: fc.weight, fc.bias'
    ]
    torch.testing.assert_close(net.conv1.conv.weight.sum(2), source.conv1.weight)
    torch.testing.assert_close(net.layer2[0].downsample.conv.weight[:, :, 0], source.layer2[0].downsample[0].weight)
    torch.testing.assert_close(net.layer4[1].conv2.bn.running_var, source.layer4[1].bn2.running_var)


def test_init_cfg_reads_the_backbone_of_a_larger_model(tmp_path):
    flat = trained_2d_network('gn-ws', depth=18)
    state = {f'backbone.{name}': tensor for name, tensor in as_2d_state(flat).items()}
    torch.save({'state_dict': state | {'decode_head.bias': torch.zeros(3)}}, tmp_path / 'segmentor.pth')
    init = {'type': 'Inflated2d', 'checkpoint': str(tmp_path / 'segmentor.pth'), 'prefix': 'backbone.'}
    net = build('gn-ws', depth=18, init_cfg=init)
    net.init_weights()
    expected = flat.layer1[0].conv1.conv.weight[:, :, 0].float()
    scale, _ = ws_response(net.layer1[0].conv1.conv)
    torch.testing.assert_close(net.layer1[0].conv1.conv.weight[:, :, 1], scale * expected)


def test_a_batch_norm_checkpoint_starts_bcn_with_a_live_channel_half():
    flat = trained_2d_network('bn-ws', depth=18)
    state = {k: v for k, v in as_2d_state(flat).items() if 'num_batches' not in k}
    net = build('bcn-ws', depth=18, zero_init_residual=True)
    inflate_2d_(net, state)
    norms = [m for m in net.modules() if is_norm(m)]
    assert all(m.group_weight.eq(1).all() and m.group_bias.eq(0).all() for m in norms)
    assert all(m.num_batches_tracked == 1_000_000 for m in norms)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: state.pop('layer2.0.conv1.weight'), 'missing in the file: layer2.0.conv1.conv.weight'),
        (
            lambda state: state.update({'conv1.weight': torch.zeros(8, 3, 3, 3)}),
            'of another shape: conv1.conv.weight (8, 3, 3, 3), must be (8, 3, 7, 7)',
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message):
    state = as_2d_state(trained_2d_network('bn', depth=18))
    change(state)
    net = build('bn', depth=18)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        inflate_2d_(net, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_checkpoint_of_another_norm_is_refused():
    message = (
        'the 2D checkpoint does not fit, nothing was copied: it has another kind of norm (bn1.running_mean, '
        'bn1.running_var, layer1.0.bn1.running_mean, '
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
        inflate_2d_(build('gn', depth=18), as_2d_state(trained_2d_network('bn', depth=18)))
    with pytest.raises(ValueError, match=r'missing in the file: conv1.bn.running_mean, conv1.bn.running_var'):
        inflate_2d_(build('bn', depth=18), as_2d_state(trained_2d_network('gn', depth=18)))


def test_factorised_networks_are_refused():
    message = 'a factorised convolution has no 2D counterpart: R(2+1)D cannot start from a 2D network'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        inflate_2d_(ResNet3d(18, base_channels=8, factorize=True), {})
