import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.ops import reference
from wsbcn_mm.ops import VARIANTS, weight_standardize
from wsbcn_mm.ops.ws.weight_standardization import fan_in, get_variant

# (shape, groups, transposed)
SHAPES = [
    ((5, 3), 1, False),
    ((4, 3, 5), 1, False),
    ((6, 2, 3, 1), 3, False),
    ((8, 1, 3, 3), 8, False),
    ((3, 2, 1, 3, 3), 1, False),
    ((6, 4, 3), 1, True),
    ((6, 2, 3, 2), 3, True),
    ((4, 3, 1, 2, 2), 2, True),
    ((4, 1, 2, 2), 4, True),
]


def random(shape, scale=1.0, mean=0.3, seed=0):
    return scale * (np.random.default_rng(seed).standard_normal(shape) + mean)


@pytest.mark.parametrize(
    ('variant', 'eps', 'expected'),
    [
        ('jhu', None, [0.18226058, -1.27582403, -0.06075353, 1.15431698]),
        ('bcn', None, [0.18023084, -1.2616159, -0.06007695, 1.14146201]),
        ('bit', None, [0.21055869, -1.47391082, -0.07018623, 1.33353836]),
        ('timm', None, [0.21022759, -1.47159313, -0.07007586, 1.3314414]),
        ('paper', None, [0.20731605, -1.45121232, -0.06910535, 1.31300162]),
        ('paper', 1e-6, [0.21022759, -1.47159313, -0.07007586, 1.3314414]),
    ],
)
def test_golden_rows(variant, eps, expected):
    weight = torch.tensor([[1, 2, 4, 8], [0.01, -0.02, 0.005, 0.03]], dtype=torch.float64)
    out = weight_standardize(weight, variant=variant, eps=eps)
    np.testing.assert_allclose(out[1].numpy(), expected, atol=1e-8)


def test_default_variant_is_jhu():
    weight = torch.randn(4, 9)
    assert torch.equal(weight_standardize(weight), weight_standardize(weight, variant='jhu'))


def test_the_reference_knows_every_variant():
    assert set(VARIANTS) == set(reference.WS_FORMULAS)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize(('shape', 'groups', 'transposed'), SHAPES)
def test_forward_and_gradient(variant, shape, groups, transposed):
    weight, grad = random(shape), random(shape, seed=1)
    w = torch.tensor(weight, requires_grad=True)
    out = weight_standardize(w, variant=variant, groups=groups, transposed=transposed)
    out.backward(torch.tensor(grad))
    kind = {'groups': groups, 'transposed': transposed}
    np.testing.assert_allclose(out.detach().numpy(), reference.standardize(weight, variant, **kind), atol=1e-12)
    np.testing.assert_allclose(
        w.grad.numpy(), reference.standardize_backward(grad, weight, variant, **kind), atol=1e-11
    )


@pytest.mark.parametrize('variant', VARIANTS)
def test_gradcheck(variant):
    weight = torch.tensor(random((3, 2, 3)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: weight_standardize(w, variant=variant), weight)
    transposed = torch.tensor(random((4, 2, 2)), requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w: weight_standardize(w, variant=variant, groups=2, transposed=True), transposed
    )


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('std', [1e-4, 1e-3, 1e-2, 1.0, 1e2])
def test_weight_scales(variant, std):
    """float32 keeps the float64 formula where raw weights have shrunk under weight decay, and far above."""
    weight = random((6, 4, 3, 3), std, mean=0.1)
    w = torch.tensor(weight, dtype=torch.float32, requires_grad=True)
    grad = random(weight.shape, seed=2)
    out = weight_standardize(w, variant=variant)
    out.backward(torch.tensor(grad, dtype=torch.float32))
    exact = w.detach().double().numpy()
    np.testing.assert_allclose(out.detach().numpy(), reference.standardize(exact, variant), atol=2e-6)
    expected = reference.standardize_backward(grad, exact, variant)
    np.testing.assert_allclose(w.grad.numpy(), expected, atol=2e-6 * np.abs(expected).max())


def test_softening_of_small_weights_differs_by_variant():
    """eps inside the root leaves weights of std 1e-3 at 0.30 of the full deviation, eps outside at 0.99."""
    weight = torch.randn(64, 4096, dtype=torch.float64) * 1e-3
    std = {name: weight_standardize(weight, variant=name).std(1).mean().item() for name in ('jhu', 'bcn', 'paper')}
    assert std['jhu'] == pytest.approx(0.99, abs=0.002)
    assert std['bcn'] == pytest.approx(0.30, abs=0.005)
    assert std['paper'] == pytest.approx(0.30, abs=0.005)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('value', [0.0, 0.1, -3.7, 1e4])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_constant_filter_is_finite(variant, value, dtype):
    weight = torch.full((3, 4, 3, 3), value, dtype=dtype)
    weight[1] = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight.requires_grad_()
    out = weight_standardize(weight, variant=variant)
    out.float().square().sum().backward()
    assert out.isfinite().all()
    assert weight.grad.isfinite().all()
    assert out[1].detach().float().std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize('variant', VARIANTS)
def test_constant_filter_gets_the_gradient_of_its_formula(variant):
    grad = random((1, 6), seed=3)
    weight = torch.full((1, 6), 0.25, dtype=torch.float64, requires_grad=True)
    out = weight_standardize(weight, variant=variant)
    assert out.abs().max() == 0
    out.backward(torch.tensor(grad))
    eps = VARIANTS[variant].eps
    divisor = np.sqrt(eps) if VARIANTS[variant].eps_inside else eps
    np.testing.assert_allclose(weight.grad.numpy(), (grad - grad.mean()) / divisor, rtol=1e-12)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize('variant', VARIANTS)
def test_precision(dtype, tolerance, variant):
    """Only the rounding of the result may show: statistics are float32 inside."""
    weight = torch.randn(8, 64, 3, 3, generator=torch.Generator().manual_seed(0)).mul(0.02).add(0.01).to(dtype)
    out = weight_standardize(weight, variant=variant)
    assert out.dtype == dtype
    expected = reference.standardize(weight.double().numpy(), variant)
    np.testing.assert_allclose(out.double().numpy(), expected, atol=tolerance)


def test_half_precision_does_not_overflow():
    weight = torch.linspace(-6e4, 6e4, 64).half().view(2, 32)
    out = weight_standardize(weight)
    assert out.isfinite().all()
    assert out.float().std(1).tolist() == pytest.approx([1, 1], abs=1e-2)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.integers(1, 3), max_size=3),
    st.sampled_from(sorted(VARIANTS)),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shape(outputs, inputs, kernel, variant, transposed, seed):
    shape = (outputs, inputs, *kernel)
    fan = fan_in(torch.empty(shape), transposed=transposed)
    weight = random(shape, seed=seed)
    if fan < 2:
        with pytest.raises(ValueError, match='a fan-in of at least 2 is expected'):
            weight_standardize(torch.tensor(weight), variant=variant, transposed=transposed)
        return
    out = weight_standardize(torch.tensor(weight), variant=variant, transposed=transposed).numpy()
    np.testing.assert_allclose(out, reference.standardize(weight, variant, transposed=transposed), atol=1e-9)


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('transposed', [False, True])
def test_fan_in_counts_what_one_output_sums(groups, transposed):
    conv = (nn.ConvTranspose2d if transposed else nn.Conv2d)(8, 12, (3, 5), groups=groups)
    assert fan_in(conv.weight, groups=groups, transposed=transposed) == 8 // groups * 15


@pytest.mark.parametrize('dims', [4, 5])
def test_channels_last_weight(dims):
    shape = (4, 3, 2, 3, 3)[:dims]
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[dims]
    weight = torch.randn(shape)
    out = weight_standardize(weight.to(memory_format=layout))
    torch.testing.assert_close(out, weight_standardize(weight))


def test_non_contiguous_weight():
    weight = torch.randn(3, 4, 6).transpose(0, 2)
    torch.testing.assert_close(weight_standardize(weight), weight_standardize(weight.contiguous()))


def test_input_is_left_alone():
    weight = torch.randn(3, 4)
    before = weight.clone()
    weight_standardize(weight)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ('weight', 'options', 'message'),
    [
        (
            torch.zeros(2, 3),
            {'variant': 'ws'},
            "variant='ws': one of jhu, bcn, paper, timm, bit is expected",
        ),
        (torch.zeros(4), {}, 'weight.shape=(4,): at least 2 axes are expected, which give a fan-in'),
        (
            torch.zeros(8, 1, 1, 1),
            {},
            'weight.shape=(8, 1, 1, 1): a fan-in of at least 2 is expected; a single value has no deviation',
        ),
        (
            torch.zeros(8, 1, 1),
            {'transposed': True, 'groups': 8},
            'weight.shape=(8, 1, 1): a fan-in of at least 2 is expected; a single value has no deviation',
        ),
        (
            torch.zeros(5, 2, 3),
            {'transposed': True, 'groups': 2},
            'groups=2: a divisor of axis 0 of the transposed weight is expected; weight.shape=(5, 2, 3)',
        ),
        (
            torch.zeros(2, 3),
            {'eps': 0.0},
            'eps=0.0: a positive number is expected, so that a constant filter stays finite',
        ),
        (
            torch.zeros(2, 3),
            {'gain': 2.0},
            "gain=2.0: None or 'fan_in' is expected",
        ),
    ],
)
def test_refusals(weight, options, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        weight_standardize(weight, **options)
    assert str(error.value) == message


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize(('shape', 'groups', 'transposed'), SHAPES)
def test_the_fan_in_gain_divides_by_the_root_of_what_one_output_sums(variant, shape, groups, transposed):
    weight, grad = random(shape), random(shape, seed=1)
    size = fan_in(torch.empty(shape), groups=groups, transposed=transposed)
    kind = {'groups': groups, 'transposed': transposed}
    w = torch.tensor(weight, requires_grad=True)
    out = weight_standardize(w, variant=variant, gain='fan_in', **kind)
    out.backward(torch.tensor(grad))
    expected = reference.standardize(weight, variant, **kind) / np.sqrt(size)
    pulled = reference.standardize_backward(grad, weight, variant, **kind) / np.sqrt(size)
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(w.grad.numpy(), pulled, atol=1e-11)


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_constant_filter_with_a_gain_is_finite(variant):
    weight = torch.full((2, 9), 0.1, requires_grad=True)
    weight_standardize(weight, variant=variant, gain='fan_in').sum().backward()
    assert weight.grad.isfinite().all()


def test_own_eps_replaces_the_variants():
    assert get_variant('timm', 1e-3).eps == 1e-3
    assert get_variant('timm').eps == 1e-6
    weight = random((3, 8))
    np.testing.assert_allclose(
        weight_standardize(torch.tensor(weight), variant='jhu', eps=0.5).numpy(),
        reference.standardize(weight, 'jhu', eps=0.5),
        atol=1e-12,
    )
