"""Values are torch's own, gradients torch's on a CPU to 1e-6; on a GPU they repeat themselves bit by bit."""

import re

import pytest
import torch
import torch.nn.functional as F

from wsbcn_mm.ops.bilinear_upsample import bilinear_upsample

SIZES = [((5, 7), (40, 56)), ((5, 7), (9, 30)), ((8, 8), (3, 5)), ((1, 1), (6, 4)), ((6, 4), (1, 1)), ((4, 4), (4, 4))]


def outputs_and_gradients(function, x, grad):
    x = x.detach().requires_grad_()
    out = function(x)
    out.backward(grad)
    return out.detach(), x.grad


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('inputs', 'outputs'), SIZES)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_equals_interpolate(inputs, outputs, align_corners, dtype):
    torch.manual_seed(0)
    x, grad = torch.randn(2, 3, *inputs, dtype=dtype), torch.randn(2, 3, *outputs, dtype=dtype)
    ours, pulled = outputs_and_gradients(lambda x: bilinear_upsample(x, outputs, align_corners=align_corners), x, grad)
    options = dict(size=outputs, mode='bilinear', align_corners=align_corners)
    exact, exact_pulled = outputs_and_gradients(lambda x: F.interpolate(x, **options), x.double(), grad.double())
    assert torch.equal(ours, F.interpolate(x, **options))
    assert pulled.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
    scale = float(exact_pulled.abs().max())
    torch.testing.assert_close(pulled.double(), exact_pulled, rtol=0, atol=tolerance * max(1, scale))
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=4 * tolerance)


def test_gradients_of_gradients():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: bilinear_upsample(x, (5, 6)).square(), x)


def test_channels_last_and_autocast():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
        out, pulled = outputs_and_gradients(lambda x: bilinear_upsample(x, (8, 8)), x, torch.ones(2, 8, 8, 8))
    assert out.dtype == pulled.dtype == torch.float32
    torch.testing.assert_close(pulled, torch.full_like(pulled, 4))


@pytest.mark.parametrize(
    ('shape', 'size', 'message'),
    [
        ((2, 3, 4), (8, 8), 'x.shape=(2, 3, 4): (N, C, H, W) is expected'),
        ((2, 3, 4, 4), (8,), 'size=(8,): two positive numbers (H, W) are expected'),
        ((2, 3, 4, 4), (8, 0), 'size=(8, 0): two positive numbers (H, W) are expected'),
    ],
)
def test_refusals(shape, size, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        bilinear_upsample(torch.zeros(shape), size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('align_corners', [False, True])
def test_a_gpu_gives_the_same_gradient_every_time(align_corners):
    torch.manual_seed(0)
    x, grad = torch.randn(1, 19, 64, 128, device='cuda'), torch.randn(1, 19, 512, 1024, device='cuda')
    pulled = [
        outputs_and_gradients(lambda x: bilinear_upsample(x, (512, 1024), align_corners=align_corners), x, grad)[1]
        for _ in range(5)
    ]
    assert all(torch.equal(pulled[0], other) for other in pulled[1:])
    options = dict(size=(512, 1024), mode='bilinear', align_corners=align_corners)
    _, expected = outputs_and_gradients(lambda x: F.interpolate(x, **options), x.cpu().double(), grad.cpu().double())
    torch.testing.assert_close(pulled[0].cpu().double(), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
