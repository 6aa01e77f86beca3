import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.ops import reference
from wsbcn_mm.layers import WSConv1d, WSConv2d, WSConv3d, WSConvTranspose1d, WSConvTranspose2d, WSConvTranspose3d
from wsbcn_mm.ops import VARIANTS

PAIRS = [
    (WSConv1d, nn.Conv1d, 1),
    (WSConv2d, nn.Conv2d, 2),
    (WSConv3d, nn.Conv3d, 3),
    (WSConvTranspose1d, nn.ConvTranspose1d, 1),
    (WSConvTranspose2d, nn.ConvTranspose2d, 2),
    (WSConvTranspose3d, nn.ConvTranspose3d, 3),
]
PLAIN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def images(rank, channels=4, size=6, dtype=torch.float64):
    return torch.randn(2, channels, *[size - i for i in range(rank)], dtype=dtype)


def standardised(conv):
    kind = {'groups': conv.groups, 'transposed': conv.transposed}
    return torch.tensor(reference.standardize(conv.weight.detach().numpy(), conv.variant, **kind))


@pytest.mark.parametrize(('ws', 'plain', 'rank'), PAIRS)
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('variant', VARIANTS)
def test_equals_a_plain_convolution_of_the_standardised_weight(ws, plain, rank, groups, variant):
    options = {'stride': 2, 'padding': 1, 'dilation': 2, 'groups': groups}
    conv = ws(4, 6, 3, variant=variant, **options).double()
    other = plain(4, 6, 3, **options).double()
    other.load_state_dict({'weight': standardised(conv), 'bias': conv.bias.detach()})
    x = images(rank)
    torch.testing.assert_close(conv(x), other(x))
    assert isinstance(conv, plain)


@pytest.mark.parametrize(('ws', 'plain', 'rank'), PAIRS)
def test_parameter_gradients_pass_through_the_standardisation(ws, plain, rank):
    conv = ws(4, 6, 2, groups=2).double()
    x = images(rank).requires_grad_()
    grad = torch.randn_like(conv(x))
    conv(x).backward(grad)
    other = plain(4, 6, 2, groups=2).double()
    other.load_state_dict({'weight': standardised(conv), 'bias': conv.bias.detach()})
    x_other = x.detach().requires_grad_()
    other(x_other).backward(grad)
    torch.testing.assert_close(x.grad, x_other.grad)
    torch.testing.assert_close(conv.bias.grad, other.bias.grad)
    expected = reference.standardize_backward(
        other.weight.grad.numpy(), conv.weight.detach().numpy(), 'jhu', groups=2, transposed=conv.transposed
    )
    np.testing.assert_allclose(conv.weight.grad.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('ws', [WSConvTranspose1d, WSConvTranspose2d, WSConvTranspose3d])
def test_transposed_filters_are_those_of_the_output_channels(ws, groups):
    """Each output channel of a transposed convolution sees unit deviation over all that it sums."""
    conv = ws(8, 12, 3, groups=groups).double()
    per_group = 8 // groups
    weight = conv.standardized_weight().detach()
    for g in range(groups):
        for o in range(12 // groups):
            values = weight[g * per_group : (g + 1) * per_group, o]
            assert values.mean().item() == pytest.approx(0, abs=1e-12)
            assert values.std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(('ws', 'plain', 'rank'), PAIRS[:3])
@pytest.mark.parametrize('mode', ['reflect', 'replicate', 'circular'])
def test_padding_modes(ws, plain, rank, mode):
    options = {'padding': 2, 'padding_mode': mode, 'bias': False}
    conv = ws(4, 3, 3, **options).double()
    other = plain(4, 3, 3, **options).double()
    other.load_state_dict({'weight': standardised(conv)})
    x = images(rank)
    torch.testing.assert_close(conv(x), other(x))


@pytest.mark.parametrize(('ws', 'plain', 'rank'), PAIRS[:3])
def test_padding_same(ws, plain, rank):
    conv = ws(4, 3, 3, padding='same', dilation=2).double()
    other = plain(4, 3, 3, padding='same', dilation=2).double()
    other.load_state_dict({'weight': standardised(conv), 'bias': conv.bias.detach()})
    x = images(rank)
    assert conv(x).shape[2:] == x.shape[2:]
    torch.testing.assert_close(conv(x), other(x))


@pytest.mark.parametrize(('ws', 'plain', 'rank'), PAIRS[3:])
def test_output_size(ws, plain, rank):
    conv = ws(4, 3, 3, stride=2, padding=1).double()
    other = plain(4, 3, 3, stride=2, padding=1).double()
    other.load_state_dict({'weight': standardised(conv), 'bias': conv.bias.detach()})
    x = images(rank)
    size = [2 * s for s in x.shape[2:]]
    assert list(conv(x, output_size=size).shape[2:]) == size
    torch.testing.assert_close(conv(x, output_size=size), other(x, output_size=size))
    torch.testing.assert_close(conv(x), other(x))
    with pytest.raises(ValueError, match='requested an output size'):
        conv(x, output_size=[s * 5 for s in size])


@pytest.mark.parametrize(('ws', 'plain', 'rank'), PAIRS)
def test_input_without_a_batch_axis(ws, plain, rank):
    conv = ws(4, 6, 3)
    x = images(rank, dtype=torch.float32)
    torch.testing.assert_close(conv(x[0]), conv(x)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('options', [{}, {'stride': 2, 'padding': 1}, {'groups': 2, 'bias': False, 'dilation': 2}])
def test_equals_mmcv(options):
    from mmcv.cnn.bricks.conv_ws import ConvWS2d

    theirs = ConvWS2d(4, 6, 3, **options)
    ours = WSConv2d(4, 6, 3, **options)
    ours.load_state_dict(theirs.state_dict())
    x = images(2, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(('ws', 'plain', 'rank'), PAIRS)
@pytest.mark.parametrize('bias', [True, False])
def test_state_is_that_of_the_plain_convolution(ws, plain, rank, bias):
    conv, other = ws(4, 6, 3, bias=bias), plain(4, 6, 3, bias=bias)
    assert list(conv.state_dict()) == list(other.state_dict())
    conv.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(conv.weight, other.weight)
    conv.load_state_dict(other.state_dict(), strict=True, assign=True)
    other.load_state_dict(conv.state_dict(), strict=True)


@pytest.mark.parametrize(('ws', 'plain', 'rank'), PAIRS)
@pytest.mark.parametrize('bias', [True, False])
def test_copies_behave_alike(ws, plain, rank, bias):
    conv = ws(4, 6, 3, variant='timm', eps=1e-4, bias=bias)
    x = images(rank, dtype=torch.float32)
    buffer = io.BytesIO()
    torch.save(conv, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(conv), pickle.loads(pickle.dumps(conv)), torch.load(buffer, weights_only=False)]
    for other in copies:
        assert (other.variant, other.ws_eps) == ('timm', 1e-4)
        assert torch.equal(other(x), conv(x))
        assert other.weight is not conv.weight


def test_initialisation_is_torchs():
    torch.manual_seed(0)
    ours = WSConv2d(3, 5, 3)
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 5, 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_conversions():
    conv = WSConv2d(3, 5, 3)
    assert conv.double().weight.dtype == torch.float64
    assert conv.to(memory_format=torch.channels_last).weight.is_contiguous(memory_format=torch.channels_last)
    half = WSConv2d(3, 5, 3).bfloat16()
    out = half(torch.randn(1, 3, 6, 6).bfloat16())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    meta = WSConv2d(3, 5, 3, device='meta')
    assert meta(torch.empty(2, 3, 6, 6, device='meta')).shape == (2, 5, 4, 4)
    assert WSConv2d(3, 5, 3, dtype=torch.float64).standardized_weight().dtype == torch.float64


@pytest.mark.parametrize(
    ('layer', 'x', 'layout'),
    [
        (WSConv2d(4, 8, 3), torch.randn(2, 4, 6, 5), torch.channels_last),
        (WSConv3d(4, 8, 3), torch.randn(2, 4, 3, 6, 5), torch.channels_last_3d),
    ],
)
def test_channels_last_stays(layer, x, layout):
    out = layer(x.to(memory_format=layout))
    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out, layer(x), atol=1e-5, rtol=1e-5)


def test_autocast():
    conv = WSConv2d(16, 8, 3)
    x = torch.randn(2, 16, 6, 6)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = conv(x)
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), conv(x), atol=0.3, rtol=0.05)
    assert conv.weight.grad.dtype == torch.float32
    assert conv.weight.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('scale', [1.0, 30.0, 1e3])
def test_the_fan_in_gain_keeps_an_aspp_of_2048_channels_finite_in_float16(scale, dtype):
    """Its 3x3 filters multiply by 136 without the gain: what comes out of a ReLU a thousand times too large is lost."""
    torch.manual_seed(0)
    x = scale * torch.randn(1, 2048, 4, 4).relu()
    outs = {}
    for gain in (None, 'fan_in'):
        conv = WSConv2d(2048, 4, 3, padding=1, bias=False, gain=gain)
        with torch.no_grad():
            outs[gain] = F.conv2d(x.to(dtype), conv.standardized_weight().to(dtype), padding=1)
        assert outs[gain].dtype == dtype
    assert outs['fan_in'].isfinite().all()
    assert outs['fan_in'].float().std() == pytest.approx(scale / math.sqrt(2), rel=0.5)  # half of x's squares are 0
    assert outs[None].isfinite().all() == (dtype == torch.bfloat16 or scale < 1e3)


def test_a_norm_divides_the_gain_out_again():
    torch.manual_seed(0)
    plain, gained = (
        nn.Sequential(WSConv2d(16, 8, 3, bias=False, gain=gain), nn.GroupNorm(2, 8, eps=1e-12)).double()
        for gain in (None, 'fan_in')
    )
    gained.load_state_dict(plain.state_dict())
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(gained(x), plain(x), rtol=1e-9, atol=1e-9)
    assert repr(gained[0]).endswith('variant=jhu, gain=fan_in)')


def test_empty_batch():
    out = WSConv2d(3, 5, 3, padding=1)(torch.zeros(0, 3, 6, 6))
    assert out.shape == (0, 5, 6, 6)


def test_compiles_in_one_graph():
    conv = WSConv2d(3, 5, 3, variant='bcn')
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), conv(x))


def test_constant_filter_trains_on():
    conv = WSConv2d(3, 5, 3)
    nn.init.zeros_(conv.weight)
    conv(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert conv.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (
            lambda: WSConv2d(3, 5, 3, variant='jhu2'),
            "variant='jhu2': one of jhu, bcn, paper, timm, bit is expected",
        ),
        (
            lambda: WSConv2d(3, 5, 3, eps=-1.0),
            'eps=-1.0: a positive number is expected, so that a constant filter stays finite',
        ),
        (
            lambda: WSConv2d(8, 8, 1, groups=8),
            'WSConv2d(8, 8, kernel_size=(1, 1), stride=(1, 1), groups=8, variant=jhu) has fan-in 1: at least '
            '2 is expected, because a single weight has no deviation; use a plain convolution',
        ),
        (
            lambda: WSConvTranspose1d(4, 4, 1, groups=4, eps=1e-3),
            'WSConvTranspose1d(4, 4, kernel_size=(1,), stride=(1,), groups=4, variant=jhu, eps=0.001) has fan-in 1: '
            'at least 2 is expected, because a single weight has no deviation; use a plain convolution',
        ),
    ],
)
def test_refused_at_construction(build, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        build()
    assert str(error.value) == message


def test_depthwise_with_a_real_kernel_is_accepted():
    assert WSConv2d(8, 8, 3, groups=8)(torch.randn(1, 8, 5, 5)).shape == (1, 8, 3, 3)


def test_torchs_fusing_is_refused():
    conv, norm = WSConv2d(3, 5, 3, bias=False).eval(), nn.BatchNorm2d(5).eval()
    with pytest.raises(RuntimeError) as error:
        torch.nn.utils.fuse_conv_bn_eval(conv, norm)
    assert str(error.value) == (
        'WSConv2d cannot be fused with the norm after it: it standardises its weight in every forward, which undoes '
        'the factor that fusing puts on it'
    )
