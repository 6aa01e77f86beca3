"""The Triton kernels against the reference: on a GPU where there is one, else in Triton's interpreter.

The interpreter is chosen by the environment before triton is imported, so that the first test here starts a process of
its own for the others.
"""

import math
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip('triton')

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cuda' if torch.cuda.is_available() and not INTERPRETED else 'cpu'
if INTERPRETED or DEVICE == 'cuda':
    from wsbcn_mm.ops import VARIANTS, weight_standardize
    from wsbcn_mm.ops.ws import fused
    from wsbcn_mm.ops.ws import triton as kernels
    from wsbcn_mm.ops.ws.weight_standardization import divisor_of, get_variant, weight_standardize_reference
else:
    from wsbcn_mm.ops import VARIANTS

kernel_test = pytest.mark.skipif(
    not INTERPRETED and DEVICE == 'cpu', reason='runs in the process that test_in_the_interpreter starts'
)


@pytest.mark.skipif(INTERPRETED, reason='this is the interpreter')
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__],
        env=os.environ | {'TRITON_INTERPRET': '1', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '100%' in done.stdout


@pytest.fixture
def poisoned():
    """Fill what torch.empty returns with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape, dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (0.02 * values + 0.005).to(DEVICE, dtype)


def reference(rows, variant, grad, gain=None):
    w = rows.double().requires_grad_()
    out = weight_standardize_reference(w, get_variant(variant, gain=gain))
    out.backward(grad.double())
    return out.detach(), w.grad


def divisor(variant, fan_in, gain=None):
    return divisor_of(get_variant(variant, gain=gain), fan_in)


@kernel_test
@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('fan_in', [2, 27, 147, 4609])
def test_forward_and_backward(variant, fan_in):
    rows, grad = random(3, fan_in), random(3, fan_in, seed=1)
    out, saved = kernels.standardize_rows(rows, divisor(variant, fan_in), torch.float32)
    pulled = kernels.pull_back_rows(grad, rows, saved, divisor(variant, fan_in))
    expected, expected_grad = reference(rows, variant, grad)
    torch.testing.assert_close(out.double(), expected, atol=5e-6, rtol=5e-6)
    # At a fan-in of 2 the terms cancel but for what eps leaves.
    scale = (grad.abs().max() / rows.std(1).min()).item()
    torch.testing.assert_close(pulled.double(), expected_grad, atol=5e-6 * scale, rtol=1e-5)


@kernel_test
@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize('variant', VARIANTS)
def test_the_fan_in_gain(variant):
    rows, grad, formula = random(3, 147), random(3, 147, seed=1), divisor(variant, 147, 'fan_in')
    out, saved = kernels.standardize_rows(rows, formula, torch.float32)
    expected, expected_grad = reference(rows, variant, grad, 'fan_in')
    torch.testing.assert_close(out.double(), expected, atol=5e-6, rtol=5e-6)
    pulled = kernels.pull_back_rows(grad, rows, saved, formula)
    torch.testing.assert_close(pulled.double(), expected_grad, atol=5e-6, rtol=1e-5)


@kernel_test
@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize('variant', ['paper', 'timm', 'bit'])
def test_fan_in_of_one_is_zero_where_the_variance_is_biased(variant):
    out, saved = kernels.standardize_rows(random(3, 1), divisor(variant, 1), torch.float32)
    pulled = kernels.pull_back_rows(random(3, 1, seed=1), random(3, 1), saved, divisor(variant, 1))
    assert not out.any()
    assert not pulled.any()


@kernel_test
@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('value', [0.0, 0.1, -3.7, 1e4])
def test_constant_filter_is_finite(variant, value):
    rows, grad = torch.full((2, 36), value, device=DEVICE), random(2, 36)
    rows[1] = random(36)
    out, saved = kernels.standardize_rows(rows, divisor(variant, 36), torch.float32)
    pulled = kernels.pull_back_rows(grad, rows, saved, divisor(variant, 36))
    assert out.isfinite().all()
    assert pulled.isfinite().all()
    expected, expected_grad = reference(rows[1:], variant, grad[1:])
    torch.testing.assert_close(out[1:].double(), expected, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(pulled[1:].double(), expected_grad, atol=5e-5, rtol=1e-4)
    if value == 0:
        std = {'jhu': 1e-5, 'bit': 1e-5, 'timm': 1e-3}.get(variant, math.sqrt(1e-5))
        torch.testing.assert_close(pulled[0], (grad[0] - grad[0].mean()) / std, atol=1e-3, rtol=1e-4)


@kernel_test
@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('raw', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision(variant, raw, dtype):
    """Arithmetic is in float32 whatever is read and written: each result is the exact one, rounded once.

    One unit in the last place is allowed, for the interpreter truncates to bfloat16.
    """
    rows, grad = random(4, 147, dtype=raw), random(4, 147, dtype=dtype, seed=1)
    out, saved = kernels.standardize_rows(rows, divisor(variant, 147), dtype)
    pulled = kernels.pull_back_rows(grad, rows, saved, divisor(variant, 147))
    assert (out.dtype, pulled.dtype) == (dtype, raw)
    expected, expected_grad = reference(rows, variant, grad)
    step = 1.01 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, atol=step / 50, rtol=step)
    scale = expected_grad.abs().max().item()
    step = 1.01 * torch.finfo(raw).eps
    torch.testing.assert_close(pulled.double(), expected_grad, atol=(step / 50 + 2e-6) * scale, rtol=step + 2e-6)


@kernel_test
@pytest.mark.usefixtures('poisoned')
@pytest.mark.parametrize(
    ('shape', 'kind'),
    [
        ((6, 4, 3, 3), {}),
        ((6, 1, 3, 3), {'groups': 6}),
        ((4, 3, 2, 3, 3), {}),
        ((6, 4, 3), {'transposed': True}),
        ((6, 2, 3, 2), {'transposed': True, 'groups': 3}),
        ((4, 1, 2, 2), {'transposed': True, 'groups': 4}),
    ],
)
@pytest.mark.parametrize('channels_last', [False, True])
def test_weights_through_the_whole_path(shape, kind, channels_last, monkeypatch):
    monkeypatch.setattr(fused, 'runs_on_triton', lambda weight: True)
    weight, grad = random(*shape), random(*shape, seed=1)
    if channels_last:
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        weight = weight.to(memory_format=layouts.get(len(shape), torch.contiguous_format))
    weight.requires_grad_()
    out = weight_standardize(weight, **kind)
    out.backward(grad)
    exact = weight.detach().double().requires_grad_()
    expected = weight_standardize_reference(exact, get_variant('jhu'), **kind)
    expected.backward(grad.double())
    torch.testing.assert_close(out.double(), expected, atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(weight.grad.double(), exact.grad, atol=5e-5, rtol=5e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_a_gpu_takes_the_kernels():
    assert fused.runs_on_triton(random(4, 9))
    assert not fused.runs_on_triton(random(4, 9).double())
