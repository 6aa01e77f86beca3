import numpy as np
import pytest
import torch
from torch import nn

from tests.ops import reference
from tests.ops.bcn.test_batch_channel_norm import assert_near, random, random_affine
from wsbcn_mm.ops import batch_norm

BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@pytest.mark.parametrize('shape', [(5, 4), (3, 4, 7), (2, 4, 5, 3), (2, 4, 3, 2, 4)])
def test_equals_torch_over_several_steps(shape):
    theirs = BATCH_NORMS[len(shape)](4, momentum=0.3).double()
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    weight, bias = (p.detach().clone().requires_grad_() for p in (theirs.weight, theirs.bias))
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for step, training in enumerate([True, True, True, False]):
        theirs.train(training)
        value, grad = torch.tensor(random(shape, 1.5, 0.7, step)), torch.tensor(random(shape, seed=50 + step))
        x_ours, x_theirs = (value.clone().requires_grad_() for _ in range(2))
        ours = batch_norm(x_ours, mean, var, weight, bias, rate=0.3, training=training)
        expected = theirs(x_theirs)
        ours.backward(grad)
        expected.backward(grad)
        assert_near(ours, expected.detach().numpy())
        assert_near(x_ours.grad, x_theirs.grad.numpy())
        assert_near(mean, theirs.running_mean.numpy())
        assert_near(var, theirs.running_var.numpy())
    assert_near(weight.grad, theirs.weight.grad.numpy())
    assert_near(bias.grad, theirs.bias.grad.numpy())


def test_equals_the_float64_version():
    x = random((3, 4, 6), 2.0, 1.0)
    affine = random_affine(4, 2)
    mean, var = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    out = batch_norm(
        torch.tensor(x), mean, var, torch.tensor(affine.weight), torch.tensor(affine.bias), rate=1.0, training=True
    )
    batch_mean, batch_var = reference.batch_statistics(x)
    assert_near(out, reference.batch_half(x, batch_mean, batch_var, affine, 1e-5))
    assert_near(mean, batch_mean)
    assert_near(var, batch_var * 18 / 17)


def test_gradcheck():
    x = torch.tensor(random((3, 2, 4)), requires_grad=True)
    weight, bias = (torch.tensor(random(2, seed=i), requires_grad=True) for i in (1, 2))

    def function(x, weight, bias):
        buffers = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        return batch_norm(x, *buffers, weight, bias, rate=0.1, training=True)

    assert torch.autograd.gradcheck(function, (x, weight, bias))


def test_evaluation_uses_the_buffers_and_leaves_them():
    x = torch.randn(1, 3, 1, 1)
    mean, var = torch.randn(3), torch.rand(3) + 0.5
    before = mean.clone(), var.clone()
    out = batch_norm(x, mean, var, None, None, rate=0.5, training=False)
    torch.testing.assert_close(out.flatten(), (x.flatten() - mean) / torch.sqrt(var + 1e-5))
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


def test_rate_zero_keeps_the_buffers_but_normalises_with_the_batch():
    x = torch.randn(4, 3, 5) * 3 + 2
    mean, var = torch.zeros(3), torch.ones(3)
    out = batch_norm(x, mean, var, None, None, rate=0, training=True)
    torch.testing.assert_close(out.mean((0, 2)), torch.zeros(3), atol=1e-6, rtol=0)
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(var, torch.ones(3))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x = (torch.randn(2, 4, 8, 8) * 2e3).to(dtype)
    mean, var = torch.zeros(4), torch.ones(4)
    out = batch_norm(x, mean, var, None, None, rate=1.0, training=True)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(var.numpy(), x.double().numpy().var((0, 2, 3), ddof=1), rtol=1e-5)


def test_large_mean_keeps_its_variance():
    x = torch.tensor(random((2, 3, 800), 1.0, 1e3), dtype=torch.float32)
    mean, var = torch.zeros(3), torch.ones(3)
    batch_norm(x, mean, var, None, None, rate=1.0, training=True)
    np.testing.assert_allclose(var.numpy(), x.double().numpy().var((0, 2), ddof=1), rtol=1e-4)


def test_without_a_process_group_synchronize_changes_nothing():
    x = torch.randn(4, 3, 5)
    outs = [
        batch_norm(x, torch.zeros(3), torch.ones(3), None, None, rate=0.1, training=True, synchronize=s)
        for s in (False, True)
    ]
    assert torch.equal(*outs)


@pytest.mark.parametrize(('shape', 'count'), [((1, 3, 1, 1), 1), ((0, 3, 4), 0)])
def test_undefined_statistics_are_refused(shape, count):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        batch_norm(torch.zeros(shape), torch.zeros(3), torch.ones(3), None, None, rate=0.1, training=True)
    assert str(error.value) == (
        f'x.shape={shape}: batch statistics need at least 2 values per channel, this input has {count}'
    )
