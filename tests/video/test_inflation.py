"""A still video must be answered as the 2D network answers the picture."""

import re

import pytest
import torch
import torchvision
from mmcv.cnn import is_norm
from torch import Tensor

import wsbcn_mm  # noqa: F401  registers the layers
from wsbcn_mm.video.inflation import canonical_name, inflate_2d_
from wsbcn_mm.video.resnet3d import ResNet3d

# Circular padding: zeros before the first and after the last frame would be no part of a still video.
CONV = {'type': 'Conv3d', 'padding_mode': 'circular'}
WS = {'type': 'WSConv3d', 'padding_mode': 'circular'}
NORMS = {
    'bn': (CONV, {'type': 'BN3d'}),
    'gn': (CONV, {'type': 'GN', 'num_groups': 4}),
    'gn-ws': (WS, {'type': 'GN', 'num_groups': 4}),
    'bn-ws': (WS, {'type': 'BN3d'}),
    'bn-ws-timm': (WS | {'variant': 'timm'}, {'type': 'BN3d'}),
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
    """A ResNet without temporal kernels, with weights off their start and the statistics of a batch."""
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
    """The state by the names, and with the shapes, of a 2D ResNet."""
    state = {}
    for name, tensor in net.state_dict().items():
        name = re.sub(r'downsample\.conv\.', 'downsample.0.', name)
        name = re.sub(r'downsample\.(?:bn|gn)\.', 'downsample.1.', name)
        name = re.sub(r'conv(\d)\.conv\.', r'conv\1.', name)
        name = re.sub(r'conv(\d)\.(?:bn|gn)\.', r'bn\1.', name)
        state[name] = tensor.squeeze(2) if tensor.ndim == 5 else tensor
    return state


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('shape', SHAPES)
def test_a_still_video_is_answered_as_the_picture(norm, shape):
    flat = trained_2d_network(norm)
    inflated = build(norm, **SHAPES[shape]).double().eval()
    assert inflate_2d_(inflated, as_2d_state(flat)) == 'inflated 53 of 53 convolutions, copied 53 norms'
    picture = torch.randn(2, 3, 1, 64, 64, dtype=torch.float64) + 1
    with torch.no_grad():
        expected = flat(picture)
        out = inflated(picture.expand(-1, -1, 6, -1, -1))
    torch.testing.assert_close(out, expected.expand_as(out), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


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
    monkeypatch.setattr('wsbcn_mm.video.inflation.print_log', lambda text, logger: said.append(text))
    net = ResNet3d(18, init_cfg={'type': 'Inflated2d', 'checkpoint': str(tmp_path / 'resnet18.pth')})
    net.init_weights()
    assert said == [
        f'{tmp_path}/resnet18.pth: inflated 20 of 20 convolutions, copied 20 norms; '
        'left in the checkpoint: fc.bias, fc.weight'
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
    torch.testing.assert_close(net.layer1[0].conv1.conv.weight[:, :, 1], expected)


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
        (
            lambda state: state.pop('layer2.0.conv1.weight'),
            'the 2D checkpoint has no layer2.0.conv1.conv.weight; it has conv1.conv.weight, ',
        ),
        (
            lambda state: state.update({'conv1.weight': torch.zeros(8, 3, 3, 3)}),
            'conv1.conv.weight has shape (8, 3, 3, 3) in the 2D checkpoint, must be (8, 3, 7, 7)',
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
        'the 2D checkpoint has running_mean, running_var, num_batches_tracked for conv1, which GroupNorm lacks: '
        'it was trained with another kind of norm'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        inflate_2d_(build('gn', depth=18), as_2d_state(trained_2d_network('bn', depth=18)))
    with pytest.raises(ValueError, match=re.escape('the 2D checkpoint has no conv1.norm.running_mean')):
        inflate_2d_(build('bn', depth=18), as_2d_state(trained_2d_network('gn', depth=18)))


def test_factorised_networks_are_refused():
    message = 'a factorised convolution has no 2D counterpart: R(2+1)D cannot start from a 2D network'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        inflate_2d_(ResNet3d(18, base_channels=8, factorize=True), {})


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('conv1.weight', 'conv1.conv.weight'),
        ('bn1.running_var', 'conv1.norm.running_var'),
        ('layer3.10.gn3.bias', 'layer3.10.conv3.norm.bias'),
        ('layer2.0.downsample.0.weight', 'layer2.0.downsample.conv.weight'),
        ('layer2.0.downsample.1.group_weight', 'layer2.0.downsample.norm.group_weight'),
        ('fc.weight', 'fc.weight'),
    ],
)
def test_canonical_names(name, expected):
    assert canonical_name(name) == expected
