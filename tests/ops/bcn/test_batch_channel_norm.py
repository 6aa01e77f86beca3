import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.ops import reference
from wsbcn_mm.ops import batch_channel_norm

SHAPES = [(3, 8), (2, 8, 7), (1, 8, 5, 3), (4, 8, 1, 1), (2, 8, 3, 2, 5), (1, 8, 1), (2, 8, 2, 1, 2, 3)]


def random(shape, scale=1.0, mean=0.0, seed=0):
    return scale * np.random.default_rng(seed).standard_normal(shape) + mean


def random_affine(channels, groups, seed=9):
    weights = [random(n, 0.3, m, seed + i) for i, (n, m) in enumerate(((channels, 1), (channels, 0), (groups, 1)))]
    return reference.Affine(*weights, random(groups, 0.3, 0, seed + 3))


def tensors(affine, **options):
    return [torch.tensor(v, **options) for v in affine]


def assert_near(actual, expected, atol=1e-11):
    actual = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(actual, expected, atol=atol, rtol=0)


def test_golden_values():
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    x1 = torch.arange(16, dtype=torch.float64).reshape(2, 4, 1, 2) / 4 - 1
    x2 = torch.arange(16, dtype=torch.float64).sin().reshape(2, 4, 1, 2)
    options = {'num_groups': 2, 'rate': 0.1, 'training': True}
    batch_channel_norm(x1, mean, var, None, None, None, None, **options)
    assert_near(mean, [0.0125, 0.0625, 0.1125, 0.1625], 1e-15)
    assert_near(var, [1.003125, 1.040625, 1.128125, 1.265625], 1e-15)
    batch_channel_norm(x2, mean, var, None, None, None, None, **options)
    assert_near(mean, [0.06732369, 0.04391015, 0.05544668, 0.19671166], 5e-9)
    assert_near(var, [0.9478449, 0.99206251, 1.07580229, 1.17315013], 5e-9)


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('affine_size', [4, 8], ids=['per_group', 'per_channel'])
def test_several_steps_against_the_paper(shape, affine_size):
    """Outputs, estimates and every gradient over four training steps, and then evaluation."""
    affine = random_affine(8, affine_size)
    parameters = tensors(affine, requires_grad=True)
    mean, var = np.zeros(8), np.ones(8)
    running_mean, running_var = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    for step, training in enumerate([True, True, True, True, False]):
        x_value, grad = random(shape, 1.5, 0.7, seed=step), random(shape, seed=50 + step)
        x = torch.tensor(x_value, requires_grad=True)
        for parameter in parameters:
            parameter.grad = None
        out = batch_channel_norm(x, running_mean, running_var, *parameters, num_groups=4, rate=0.2, training=training)
        out.backward(torch.tensor(grad))

        if training:
            mean, var = reference.updated_estimates(x_value, mean, var, 0.2)
        assert_near(running_mean, mean)
        assert_near(running_var, var)
        assert_near(out, reference.bcn(x_value, mean, var, affine, 4))
        d_x, d_affine = reference.bcn_backward(grad, x_value, mean, var, affine, 4, live=False)
        assert_near(x.grad, d_x, 1e-9)
        for name, parameter, expected in zip(affine._fields, parameters, d_affine, strict=True):
            np.testing.assert_allclose(parameter.grad.numpy(), expected, atol=1e-9, err_msg=name)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('affine_size', [2, 4])
def test_gradcheck(training, affine_size):
    """With a rate of 0 the estimates are constants, as the gradient takes them to be."""
    x = torch.tensor(random((2, 4, 3)), requires_grad=True)
    parameters = tensors(random_affine(4, affine_size), requires_grad=True)
    mean, var = torch.tensor(random(4)), torch.tensor(random(4) ** 2 + 0.5)

    def function(x, *parameters):
        return batch_channel_norm(x, mean, var, *parameters, num_groups=2, rate=0.0, training=training)

    assert torch.autograd.gradcheck(function, (x, *parameters))


def test_no_gradient_flows_through_the_estimates():
    """At rate 1 the batch decides its own estimates; the gradient still treats them as constants."""
    x_value, grad = random((3, 4, 5), mean=2), random((3, 4, 5), seed=1)
    affine = random_affine(4, 2)
    x = torch.tensor(x_value, requires_grad=True)
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    out = batch_channel_norm(x, mean, var, *tensors(affine), num_groups=2, rate=1.0, training=True)
    out.backward(torch.tensor(grad))
    constants = reference.updated_estimates(x_value, np.zeros(4), np.ones(4), 1.0)
    constant, _ = reference.bcn_backward(grad, x_value, *constants, affine, 2, live=False)
    live, _ = reference.bcn_backward(grad, x_value, *constants, affine, 2, live=True)
    assert_near(x.grad, constant, 1e-10)
    assert np.abs(constant - live).max() > 1e-3
    assert not mean.requires_grad
    assert not var.requires_grad


def test_rate_one_takes_the_batch_and_its_drift():
    x = random((2, 4, 9), 1.3, 2.0)
    old_mean = random(4, seed=1)
    mean, var = torch.tensor(old_mean), torch.ones(4, dtype=torch.float64)
    batch_channel_norm(torch.tensor(x), mean, var, None, None, None, None, num_groups=2, rate=1.0, training=True)
    batch_mean, batch_var = reference.batch_statistics(x)
    assert_near(mean, batch_mean)
    assert_near(var, batch_var + (batch_mean - old_mean) ** 2)


def test_rate_zero_is_group_norm():
    x = torch.randn(2, 8, 5, 4)
    mean, var = torch.zeros(8), torch.ones(8)
    weight, bias = torch.randn(8), torch.randn(8)
    out = batch_channel_norm(x, mean, var, None, None, weight, bias, num_groups=4, rate=0, training=True, eps=1e-12)
    torch.testing.assert_close(out, F.group_norm(x, 4, weight, bias, 1e-12))
    assert torch.equal(mean, torch.zeros(8))
    assert torch.equal(var, torch.ones(8))


def test_rate_may_be_a_tensor():
    x = torch.randn(2, 4, 6)
    results = []
    for rate in (0.25, torch.tensor(0.25)):
        mean, var = torch.zeros(4), torch.ones(4)
        out = batch_channel_norm(x, mean, var, None, None, None, None, num_groups=2, rate=rate, training=True)
        results.append((out, mean, var))
    for with_float, with_tensor in zip(*results, strict=True):
        torch.testing.assert_close(with_float, with_tensor)


@pytest.mark.parametrize('shape', SHAPES)
def test_training_output_equals_evaluation_output(shape):
    x = torch.randn(shape)
    mean, var = torch.zeros(8), torch.ones(8)
    parameters = [v.float() for v in tensors(random_affine(8, 4))]
    train = batch_channel_norm(x, mean, var, *parameters, num_groups=4, rate=0.3, training=True)
    after = mean.clone(), var.clone()
    evaluation = batch_channel_norm(x, mean, var, *parameters, num_groups=4, rate=0.3, training=False)
    assert torch.equal(train, evaluation)
    assert torch.equal(mean, after[0])
    assert torch.equal(var, after[1])


def test_two_forwards_before_a_backward():
    """The second forward moves the buffers in place; the first one's gradients must be those of its own estimates."""
    affine = random_affine(4, 2)
    values = [random((2, 4, 3), seed=i) for i in range(2)]
    grads = [random((2, 4, 3), seed=10 + i) for i in range(2)]
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    parameters = tensors(affine, requires_grad=True)
    xs = [torch.tensor(v, requires_grad=True) for v in values]
    outs = [batch_channel_norm(x, mean, var, *parameters, num_groups=2, rate=0.5, training=True) for x in xs]
    sum((out * torch.tensor(g)).sum() for out, g in zip(outs, grads, strict=True)).backward()

    expected_mean, expected_var = np.zeros(4), np.ones(4)
    total = [np.zeros_like(v) for v in affine]
    for x, value, grad in zip(xs, values, grads, strict=True):
        expected_mean, expected_var = reference.updated_estimates(value, expected_mean, expected_var, 0.5)
        d_x, d_affine = reference.bcn_backward(grad, value, expected_mean, expected_var, affine, 2, live=False)
        assert_near(x.grad, d_x, 1e-10)
        total = [t + d for t, d in zip(total, d_affine, strict=True)]
    for parameter, expected in zip(parameters, total, strict=True):
        assert_near(parameter.grad, expected, 1e-10)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(1, 4), max_size=3),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_any_shape(samples, groups, size, positions, rate, seed):
    channels = groups * size
    x = random((samples, channels, *positions), 2.0, 1.0, seed)
    affine = random_affine(channels, groups, seed)
    mean, var = random(channels, seed=seed + 1), random(channels, seed=seed + 2) ** 2 + 0.1
    running_mean, running_var = torch.tensor(mean), torch.tensor(var)
    out = batch_channel_norm(
        torch.tensor(x), running_mean, running_var, *tensors(affine), num_groups=groups, rate=rate, training=True
    )
    mean, var = reference.updated_estimates(x, mean, var, rate)
    assert_near(running_mean, mean, 1e-10)
    assert_near(running_var, var, 1e-10)
    assert_near(out, reference.bcn(x, mean, var, affine, groups), 1e-7)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_precision(dtype, tolerance):
    """Only the rounding of input and output may show."""
    affine = random_affine(16, 4)
    x = torch.tensor(random((2, 16, 9, 7), 3.0, 1.0)).to(dtype)
    mean, var = torch.zeros(16), torch.ones(16)
    parameters = [v.float() for v in tensors(affine)]
    out = batch_channel_norm(x, mean, var, *parameters, num_groups=4, rate=0.5, training=True)
    assert out.dtype == dtype
    assert mean.dtype == torch.float32
    exact = x.double().numpy()
    expected = reference.updated_estimates(exact, np.zeros(16), np.ones(16), 0.5)
    assert_near(mean, expected[0], 1e-5)
    assert_near(var, expected[1], 1e-4)
    assert_near(out, reference.bcn(exact, *expected, affine, 4), tolerance)


def test_half_precision_inputs_do_not_overflow():
    """Outputs of WS convolutions reach hundreds; their squares are beyond float16."""
    x = (torch.randn(1, 8, 16, 16) * 5e3).half()
    mean, var = torch.zeros(8), torch.ones(8)
    out = batch_channel_norm(x, mean, var, None, None, None, None, num_groups=2, rate=0.1, training=True)
    assert out.isfinite().all()
    assert var.isfinite().all()
    assert var.min() > 1e6


def test_variance_of_a_large_mean_survives_float32():
    x = random((2, 4, 500), 1.0, 1e3)
    x32 = torch.tensor(x, dtype=torch.float32)
    old = torch.full((4,), 1e3)
    mean, var = old.clone(), torch.ones(4)
    batch_channel_norm(x32, mean, var, None, None, None, None, num_groups=2, rate=1.0, training=True)
    expected = reference.updated_estimates(x32.double().numpy(), old.double().numpy(), np.ones(4), 1.0)
    np.testing.assert_allclose(mean.numpy(), expected[0], rtol=1e-6)
    np.testing.assert_allclose(var.numpy(), expected[1], rtol=1e-4)


@pytest.mark.parametrize(
    ('shape', 'layout'), [((2, 8, 5, 4), torch.channels_last), ((2, 8, 3, 5, 4), torch.channels_last_3d)]
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_channels_last_in_channels_last_out(shape, layout, dtype):
    x = torch.randn(shape).to(dtype)
    results = []
    for given_x in (x.contiguous(), x.to(memory_format=layout)):
        leaf = given_x.detach().requires_grad_()
        mean, var = torch.zeros(8), torch.ones(8)
        out = batch_channel_norm(leaf, mean, var, None, None, None, None, num_groups=4, rate=0.2, training=True)
        out.float().square().mul(torch.arange(8).view(8, *[1] * (len(shape) - 2))).sum().backward()
        results.append((out, leaf.grad, mean, var))
    assert results[0][0].is_contiguous()
    assert results[1][0].is_contiguous(memory_format=layout)
    tolerance = {'atol': 1e-4, 'rtol': 1e-4} if dtype == torch.float32 else {'atol': 0.05, 'rtol': 0.02}
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(plain, last, **tolerance)


def test_non_contiguous_input():
    base = torch.randn(2, 5, 8, 6)
    for x in (base.transpose(1, 2), base.permute(0, 2, 3, 1)[..., ::2], torch.randn(1, 8, 1).expand(2, 8, 4)):
        mean, var = torch.zeros(8), torch.ones(8)
        copies = mean.clone(), var.clone()
        out = batch_channel_norm(x, mean, var, None, None, None, None, num_groups=4, rate=0.2, training=True)
        expected = batch_channel_norm(
            x.contiguous(), *copies, None, None, None, None, num_groups=4, rate=0.2, training=True
        )
        assert out.is_contiguous()
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(var, copies[1])


def test_empty_batch_changes_nothing_and_keeps_the_graph():
    mean, var = torch.zeros(4), torch.ones(4)
    x = torch.zeros(0, 4, 3, 3, requires_grad=True)
    parameters = [v.float().requires_grad_() for v in tensors(random_affine(4, 2))]
    out = batch_channel_norm(x, mean, var, *parameters, num_groups=2, rate=0.5, training=True)
    assert out.shape == x.shape
    out.sum().backward()
    assert torch.equal(mean, torch.zeros(4))
    assert torch.equal(var, torch.ones(4))
    for parameter in parameters:
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize('samples', [1, 2])
def test_group_of_one_value_is_its_shift(samples):
    """One channel per group on a 1x1 map leaves nothing to normalise, for one sample as for two."""
    shift = torch.randn(4)
    x = torch.randn(samples, 4, 1, 1, requires_grad=True)
    out = batch_channel_norm(
        x, torch.zeros(4), torch.ones(4), None, None, torch.ones(4), shift, num_groups=4, rate=0.1, training=True
    )
    torch.testing.assert_close(out.detach(), shift.view(1, 4, 1, 1).expand(samples, 4, 1, 1), atol=1e-3, rtol=0)
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ('shape', 'groups', 'message'),
    [
        ((4,), 2, 'x.shape=(4,): (N, C, *) is expected'),
        ((2, 6, 3), 4, 'num_groups=4: a divisor of the 6 channels of x is expected'),
        ((2, 6, 3), 0, 'num_groups=0: a divisor of the 6 channels of x is expected'),
    ],
)
def test_refusals(shape, groups, message):
    mean, var = torch.zeros(6), torch.ones(6)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        batch_channel_norm(
            torch.zeros(shape), mean, var, None, None, None, None, num_groups=groups, rate=0.1, training=True
        )
    assert str(error.value) == message
    assert torch.equal(var, torch.ones(6))
