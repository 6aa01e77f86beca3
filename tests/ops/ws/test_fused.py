"""The fused path against the readable reference: values, gradients of every order, and when it steps aside."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from wsbcn_mm.ops import VARIANTS, weight_standardize
from wsbcn_mm.ops.ws.fused import connect, is_supported, runs_on_triton, standardize
from wsbcn_mm.ops.ws.weight_standardization import divisor_of, fan_in, get_variant, weight_standardize_reference

CASES = [
    ((5, 3), {}),
    ((8, 1, 3, 3), {'groups': 8}),
    ((3, 3, 7, 7), {}),
    ((3, 3, 3, 3), {}),
    ((2, 4609), {}),
    ((3, 2, 1, 3, 3), {}),
    ((6, 4, 3), {'transposed': True}),
    ((6, 2, 3, 2), {'transposed': True, 'groups': 3}),
    ((4, 1, 2, 2), {'transposed': True, 'groups': 4}),
]


def random(*shape, dtype=torch.float64, seed=0):
    return (0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.005).to(dtype)


def reference(weight, variant='jhu', gain=None, **kind):
    return weight_standardize_reference(weight, get_variant(variant, gain=gain), **kind)


def gradient(function, weight, grad):
    weight = weight.detach().requires_grad_()
    out = function(weight)
    out.backward(grad)
    return out.detach(), weight.grad


@pytest.mark.parametrize('gain', [None, 'fan_in'])
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize(('shape', 'kind'), CASES)
def test_forward_and_gradient(variant, shape, kind, gain):
    kind = kind | {'gain': gain}
    weight, grad = random(*shape), random(*shape, seed=1)
    out, pulled = gradient(lambda w: weight_standardize(w, variant=variant, **kind), weight, grad)
    expected, expected_grad = gradient(lambda w: reference(w, variant, **kind), weight, grad)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(pulled, expected_grad, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('mean', [0.0, 20.0])
def test_float32_is_as_exact_as_the_reference(variant, mean):
    """With a mean of a thousand deviations too, where most digits of the weight are the mean's."""
    weight, grad = random(16, 64, 3, 3, dtype=torch.float32) + mean, random(16, 64, 3, 3, dtype=torch.float32, seed=1)
    exact = gradient(lambda w: reference(w, variant), weight.double(), grad.double())
    ours = gradient(lambda w: weight_standardize(w, variant=variant), weight, grad)
    theirs = gradient(lambda w: reference(w, variant), weight, grad)
    for value, other, target in zip(ours, theirs, exact, strict=True):
        error = (value - target).abs().max()
        assert error < 2 * (other - target).abs().max() + 1e-6 * target.abs().max()


@pytest.mark.parametrize('variant', VARIANTS)
def test_second_derivatives(variant):
    weight = random(3, 2, 3).requires_grad_()
    for gain in (None, 'fan_in'):
        assert torch.autograd.gradgradcheck(lambda w, g=gain: weight_standardize(w, variant=variant, gain=g), weight)
    weight, grad = random(3, 2, 3).requires_grad_(), random(3, 2, 3, seed=1)
    seconds = []
    for function in (weight_standardize, reference):
        (first,) = torch.autograd.grad((function(weight, variant=variant) * grad).sum(), weight, create_graph=True)
        seconds += torch.autograd.grad(first.square().sum(), weight)
    torch.testing.assert_close(*seconds, atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize('variant', VARIANTS)
def test_second_derivatives_of_a_constant_filter_are_finite(variant):
    weight = torch.full((2, 9), 0.1, dtype=torch.float64, requires_grad=True)
    out = weight_standardize(weight, variant=variant)
    (first,) = torch.autograd.grad((out * random(2, 9)).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.isfinite().all()


@pytest.mark.parametrize(('shape', 'kind'), CASES[1::2])
def test_forward_mode(shape, kind):
    weight, tangent = random(*shape), random(*shape, seed=1)
    with forward_ad.dual_level():
        tangents = [
            forward_ad.unpack_dual(function(forward_ad.make_dual(weight, tangent), **kind)).tangent
            for function in (weight_standardize, reference)
        ]
    torch.testing.assert_close(*tangents, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize('raw', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('dtype', [None, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('fused', [True, False])
def test_the_result_is_rounded_once_and_the_gradient_has_the_weights_dtype(raw, dtype, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr('wsbcn_mm.ops.ws.weight_standardization.is_supported', lambda weight: False)
    weight, grad = random(4, 3, 3, 3, dtype=raw), random(4, 3, 3, 3, dtype=dtype or raw, seed=1)
    out, pulled = gradient(lambda w: weight_standardize(w, dtype=dtype), weight, grad)
    expected, expected_grad = gradient(reference, weight.double(), grad.double())
    assert (out.dtype, pulled.dtype) == (dtype or raw, raw)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0.51 * torch.finfo(out.dtype).eps + 1e-6)
    step = 0.51 * torch.finfo(raw).eps + 2e-6
    torch.testing.assert_close(pulled.double(), expected_grad, atol=step, rtol=step)


@pytest.mark.parametrize('dims', [4, 5])
def test_memory_format_stays(dims):
    shape, layout = (4, 3, 2, 3, 3)[:dims], {4: torch.channels_last, 5: torch.channels_last_3d}[dims]
    weight, grad = random(*shape).to(memory_format=layout), random(*shape, seed=1)
    out, pulled = gradient(weight_standardize, weight, grad)
    assert out.is_contiguous(memory_format=layout)
    assert pulled.is_contiguous(memory_format=layout)
    expected, expected_grad = gradient(reference, weight.contiguous(), grad)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(pulled, expected_grad, atol=1e-11, rtol=1e-10)


@pytest.mark.parametrize('grad', [torch.ones(1).expand(4, 3, 2), random(2, 3, 4).permute(2, 1, 0)])
def test_gradients_of_any_strides(grad):
    weight = random(4, 3, 2)
    _, pulled = gradient(weight_standardize, weight, grad.double())
    _, expected = gradient(reference, weight, grad.double())
    torch.testing.assert_close(pulled, expected, atol=1e-11, rtol=1e-10)


def test_a_changed_weight_is_refused_in_backward_as_torchs_convolution_does():
    weight = random(3, 4).requires_grad_()
    out = weight_standardize(weight)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


def test_saved_are_the_weight_the_result_and_two_numbers_per_filter():
    weight, saved = random(8, 16, 3, 3, dtype=torch.float32).requires_grad_(), {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t):
        out = weight_standardize(weight)
    assert saved.pop(weight.data_ptr()) is weight
    assert saved.pop(out.data_ptr()).shape == (8, 144)
    assert [t.numel() for t in saved.values()] == [8, 8]


def test_connected_many_times_to_one_standardisation():
    weight, grads = random(4, 3, 3).requires_grad_(), [random(4, 3, 3, seed=seed) for seed in (1, 2)]
    made = standardize(weight, divisor_of(get_variant('jhu'), fan_in(weight)), torch.float64)
    first, second = connect(weight, made), connect(weight, made)
    assert first is not second
    (first * grads[0] + second * grads[1]).sum().backward()
    kept, weight.grad = weight.grad, None
    for grad in grads:
        weight_standardize(weight).backward(grad)
    torch.testing.assert_close(weight.grad, kept, atol=1e-12, rtol=1e-12)


def fullgraph(weight):
    return torch.compile(weight_standardize, fullgraph=True, backend='aot_eager')(weight)


def exported(weight):
    class Module(torch.nn.Module):
        def forward(self, weight):
            return weight_standardize(weight)

    return torch.export.export(Module(), (weight,)).module()(weight)


def traced(weight):
    return torch.jit.trace(weight_standardize, weight, check_trace=False)(weight)


@pytest.mark.parametrize('run', [fullgraph, exported, traced, torch.func.vmap(weight_standardize)])
def test_tools_that_look_inside_get_the_reference(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('the fused path was taken')

    weight = random(3, 4, 5, 5)
    expected = (
        torch.stack([reference(w) for w in weight]) if run.__name__ == 'weight_standardize' else reference(weight)
    )
    monkeypatch.setattr('wsbcn_mm.ops.ws.weight_standardization.standardize', refuse)
    torch.testing.assert_close(run(weight), expected)


def test_gradients_through_torch_func_and_compile():
    weight, grad = random(3, 4, 5), random(3, 4, 5, seed=1)
    _, expected = gradient(reference, weight, grad)
    torch.testing.assert_close(torch.func.grad(lambda w: (weight_standardize(w) * grad).sum())(weight), expected)
    torch.testing.assert_close(gradient(fullgraph, weight, grad)[1], expected)


def test_fake_and_meta_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        weight = mode.from_tensor(random(4, 3, 3, 3)).requires_grad_()
        out = weight_standardize(weight, dtype=torch.bfloat16)
        out.sum().backward()
    assert (out.shape, out.dtype, weight.grad.shape) == ((4, 3, 3, 3), torch.bfloat16, (4, 3, 3, 3))
    meta = torch.empty(4, 3, 3, 3, device='meta')
    assert weight_standardize(meta).shape == (4, 3, 3, 3)
    assert not is_supported(meta)


def test_subclasses_of_tensor_stay_what_they_are():
    class Tagged(torch.Tensor):
        pass

    assert isinstance(weight_standardize(random(3, 4).as_subclass(Tagged)), Tagged)
    assert is_supported(torch.nn.Parameter(random(3, 4)))


def test_under_a_dispatch_mode():
    with FlopCounterMode(display=False):
        out = weight_standardize(random(3, 4))
    torch.testing.assert_close(out, reference(random(3, 4)))


def test_frozen_weights_and_no_grad():
    weight = random(3, 4)
    assert not weight_standardize(weight).requires_grad
    weight.requires_grad_()
    with torch.no_grad():
        assert not weight_standardize(weight).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(weight_standardize(weight).clone(), reference(weight))


def test_a_result_is_not_changed_in_place():
    """It may be a view of what other uses share."""
    weight = random(3, 4).requires_grad_()
    with pytest.raises(RuntimeError, match='is being modified inplace'):
        weight_standardize(weight).mul_(2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(variant, dtype):
    weight, grad = random(64, 33, 3, 3, dtype=dtype).cuda(), random(64, 33, 3, 3, dtype=dtype, seed=1).cuda()
    assert runs_on_triton(weight) == (dtype != torch.float64)
    out, pulled = gradient(lambda w: weight_standardize(w, variant=variant), weight, grad)
    expected, expected_grad = gradient(lambda w: reference(w, variant), weight.double(), grad.double())
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=step)
    torch.testing.assert_close(pulled.double(), expected_grad, atol=4 * step * expected_grad.abs().max(), rtol=step)
