import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.ops import reference
from wsbcn_mm.layers import BatchChannelNorm, zero_init_last_norm_
from wsbcn_mm.layers.batch_channel_norm import has_zeroed_batch_half

SHAPES = [(3, 8), (2, 8, 7), (1, 8, 5, 3), (4, 8, 1, 1), (2, 8, 3, 2, 5)]


def randomized(layer, seed=0):
    """The layer in float64 with random parameters."""
    generator = torch.Generator().manual_seed(seed)
    layer.double()
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + 0.5
    return layer


def affine_of(layer):
    return reference.Affine(*(getattr(layer, n).detach().numpy() for n in reference.Affine._fields))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('affine', ['group', 'channel'])
@pytest.mark.parametrize('warmup', [False, True])
def test_estimated_statistics(shape, affine, warmup):
    layer = randomized(BatchChannelNorm(8, 4, rate=0.3, affine=affine, warmup=warmup))
    mean, var = np.zeros(8), np.ones(8)
    for step in range(6):
        layer.train(step < 5)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        grad = torch.randn(shape, dtype=torch.float64)
        layer.zero_grad()
        out = layer(x)
        out.backward(grad)
        if layer.training:
            rate = max(0.3, 1 / (step + 1)) if warmup else 0.3
            mean, var = reference.updated_estimates(x.detach().numpy(), mean, var, rate)
        np.testing.assert_allclose(layer.running_mean.numpy(), mean, atol=1e-11)
        np.testing.assert_allclose(layer.running_var.numpy(), var, atol=1e-11)
        expected = reference.bcn(x.detach().numpy(), mean, var, affine_of(layer), 4)
        np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-9)
        d_x, d_affine = reference.bcn_backward(
            grad.numpy(), x.detach().numpy(), mean, var, affine_of(layer), 4, live=False
        )
        np.testing.assert_allclose(x.grad.numpy(), d_x, atol=1e-8)
        for name, value in d_affine._asdict().items():
            np.testing.assert_allclose(getattr(layer, name).grad.numpy(), value, atol=1e-8, err_msg=name)
    assert layer.num_batches_tracked == 5


@pytest.mark.parametrize('statistics', ['batch', 'sync'])
@pytest.mark.parametrize('shape', [(5, 8), (2, 8, 7), (1, 8, 5, 3), (4, 8, 1, 1), (2, 8, 3, 2, 5)])
def test_live_statistics(shape, statistics):
    """Without a process group `sync` is `batch`; both are the paper's large-batch BCN."""
    layer = randomized(BatchChannelNorm(8, 4, rate=0.3, statistics=statistics))
    mean, var = np.zeros(8), np.ones(8)
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        grad = torch.randn(shape, dtype=torch.float64)
        layer.zero_grad()
        out = layer(x)
        out.backward(grad)
        value = x.detach().numpy()
        batch = reference.batch_statistics(value)
        count = value.size // 8
        mean, var = mean + 0.3 * (batch[0] - mean), var + 0.3 * (batch[1] * count / (count - 1) - var)
        np.testing.assert_allclose(layer.running_mean.numpy(), mean, atol=1e-11)
        np.testing.assert_allclose(layer.running_var.numpy(), var, atol=1e-11)
        np.testing.assert_allclose(out.detach().numpy(), reference.bcn(value, *batch, affine_of(layer), 4), atol=1e-9)
        d_x, d_affine = reference.bcn_backward(grad.numpy(), value, *batch, affine_of(layer), 4, live=True)
        np.testing.assert_allclose(x.grad.numpy(), d_x, atol=1e-8)
        for name, expected in d_affine._asdict().items():
            np.testing.assert_allclose(getattr(layer, name).grad.numpy(), expected, atol=1e-8, err_msg=name)
    x = torch.randn(shape, dtype=torch.float64)
    out = layer.eval()(x).detach().numpy()
    np.testing.assert_allclose(out, reference.bcn(x.numpy(), mean, var, affine_of(layer), 4), atol=1e-9)


@pytest.mark.parametrize('statistics', ['batch', 'sync'])
def test_live_statistics_equal_batch_norm_then_group_norm(statistics):
    layer = BatchChannelNorm(8, 4, statistics=statistics, affine='channel')
    batch_norm, group_norm = nn.BatchNorm2d(8), nn.GroupNorm(4, 8)
    x = torch.randn(3, 8, 5, 5)
    torch.testing.assert_close(layer(x), group_norm(batch_norm(x)))
    torch.testing.assert_close(layer.running_var, batch_norm.running_var)
    assert layer.num_batches_tracked == batch_norm.num_batches_tracked


def test_live_statistics_of_one_value_are_refused():
    layer = BatchChannelNorm(8, 4, statistics='batch')
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        layer(torch.zeros(1, 8, 1, 1))
    assert str(error.value) == (
        'x.shape=(1, 8, 1, 1): batch statistics need at least 2 values per channel, this input has 1; '
        "use statistics='estimated'"
    )
    assert layer.eval()(torch.randn(1, 8, 1, 1)).isfinite().all()


def test_state_keys_and_shapes():
    layer = BatchChannelNorm(64)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        'weight': (64,),
        'bias': (64,),
        'group_weight': (32,),
        'group_bias': (32,),
        'running_mean': (64,),
        'running_var': (64,),
        'num_batches_tracked': (),
    }
    assert BatchChannelNorm(64, affine='channel').group_weight.shape == (64,)
    assert [n for n, _ in layer.named_parameters()] == ['weight', 'bias', 'group_weight', 'group_bias']


def test_start_values():
    layer = BatchChannelNorm(8, 4)
    for name, value in (('weight', 1), ('bias', 0), ('group_weight', 1), ('group_bias', 0)):
        assert torch.equal(getattr(layer, name).detach(), torch.full_like(getattr(layer, name), value)), name
    assert (layer.running_mean == 0).all()
    assert (layer.running_var == 1).all()
    assert layer.num_batches_tracked == 0
    assert (layer.rate, layer.eps, layer.num_groups, layer.statistics) == (0.1, 1e-5, 4, 'estimated')
    layer(torch.randn(2, 8, 3))
    nn.init.zeros_(layer.group_weight)
    layer.reset_parameters()
    assert (layer.group_weight == 1).all()
    assert (layer.running_var == 1).all()


def test_the_keys_of_a_batch_norm_checkpoint_fit():
    trained = nn.BatchNorm2d(8)
    nn.init.normal_(trained.weight)
    trained(torch.randn(4, 8, 5, 5) * 3 + 1)
    layer = BatchChannelNorm(8, 4)
    missing, unexpected = layer.load_state_dict(trained.state_dict(), strict=False)
    assert missing == ['group_weight', 'group_bias']
    assert unexpected == []
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(layer.eval()(x), F.group_norm(trained.eval()(x), 4))
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize('width', [18, 24, 36, 40, 48, 64])
def test_widths_of_real_networks(width):
    """HRNet's and MobileNet's widths: 32 groups fit few of them, so the message or channels_per_group must help."""
    if width % 32:
        with pytest.raises(ValueError, match='a divisor of num_features') as error:
            BatchChannelNorm(width)
        nearest = {18: '18', 24: '24', 36: '18 and 36', 40: '20 and 40', 48: '24 and 48'}[width]
        assert str(error.value) == f'num_groups=32: a divisor of num_features={width} is expected, nearest: {nearest}'
    layer = BatchChannelNorm(width, channels_per_group=2)
    assert layer.num_groups == width // 2
    assert layer(torch.randn(1, width, 4, 4)).shape == (1, width, 4, 4)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'num_groups': 5},
            'num_groups=5: a divisor of num_features=48 is expected, nearest: 4 and 6',
        ),
        (
            {'num_groups': 0},
            'num_groups=0: a divisor of num_features=48 is expected, nearest: 1',
        ),
        (
            {'channels_per_group': 7},
            'channels_per_group=7: a divisor of num_features=48 is expected, nearest: 6 and 8',
        ),
        (
            {'num_groups': 8, 'channels_per_group': 6},
            'num_groups=8 and channels_per_group=6: give one of them',
        ),
        (
            {'num_groups': 8, 'statistics': 'global'},
            "statistics='global': one of estimated, batch, sync is expected",
        ),
        ({'num_groups': 8, 'affine': 'none'}, "affine='none': one of group, channel is expected"),
        (
            {'num_groups': 8, 'rate': 1.5},
            'rate=1.5: a number from 0 (frozen) to 1 is expected',
        ),
        (
            {'num_groups': 8, 'rate': -0.1},
            'rate=-0.1: a number from 0 (frozen) to 1 is expected',
        ),
        (
            {'num_groups': 8, 'rate': None},
            'rate=None: a number from 0 (frozen) to 1 is expected',
        ),
        (
            {'num_groups': 8, 'rate': float('nan')},
            'rate=nan: a number from 0 (frozen) to 1 is expected',
        ),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        BatchChannelNorm(48, **options)
    assert str(error.value) == message


@pytest.mark.parametrize('shape', [(2, 6, 3), (8,)])
def test_inputs_of_another_width_are_refused(shape):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        BatchChannelNorm(8, 4)(torch.zeros(shape))
    assert str(error.value) == f'x.shape={shape}: (N, 8, *) is expected'


def test_rate_is_also_called_momentum():
    layer = BatchChannelNorm(8, 4, rate=0.25)
    assert layer.momentum == 0.25
    layer.momentum = 0.5
    assert layer.rate == 0.5
    layer.rate = 1
    assert layer.momentum == 1.0
    for name in ('rate', 'momentum'):
        with pytest.raises(ValueError, match=r'=1\.01: a number from 0'):
            setattr(layer, name, 1.01)
    x = torch.randn(2, 8, 5)
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2)))


@pytest.mark.parametrize('statistics', ['estimated', 'batch'])
def test_rate_zero_freezes_the_buffers(statistics):
    layer = BatchChannelNorm(8, 4, rate=0, statistics=statistics, warmup=True)
    x = torch.randn(4, 8, 3, 3) * 4 + 2
    out = layer(x)
    assert (layer.running_mean == 0).all()
    assert (layer.running_var == 1).all()
    assert layer.num_batches_tracked == 0
    inner = x if statistics == 'estimated' else nn.BatchNorm2d(8)(x)
    torch.testing.assert_close(out, F.group_norm(inner, 4), atol=1e-4, rtol=1e-4)


def test_rate_zero_is_group_norm():
    layer = BatchChannelNorm(8, 4, rate=0, affine='channel')
    group_norm = nn.GroupNorm(4, 8)
    nn.init.normal_(group_norm.weight)
    layer.group_weight.data.copy_(group_norm.weight)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(layer(x), group_norm(x), atol=1e-4, rtol=1e-4)


def test_warmup_starts_as_a_cumulative_mean():
    layer = BatchChannelNorm(4, 2, rate=0.1, warmup=True).double()
    batches = torch.randn(12, 2, 4, 5, dtype=torch.float64) + 3
    for t, x in enumerate(batches):
        layer(x)
        if t < 10:
            torch.testing.assert_close(layer.running_mean, batches[: t + 1].mean((0, 1, 3)))
    ten = batches[:10].mean((0, 1, 3))
    expected = ten.lerp(batches[10].mean((0, 2)), 0.1).lerp(batches[11].mean((0, 2)), 0.1)
    torch.testing.assert_close(layer.running_mean, expected)


def test_without_warmup_the_first_batch_has_the_plain_rate():
    layer = BatchChannelNorm(4, 2, rate=0.1)
    x = torch.randn(2, 4, 5) + 3
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean((0, 2)))


@pytest.mark.parametrize('shape', SHAPES)
def test_training_output_equals_evaluation_output(shape):
    layer = BatchChannelNorm(8, 4, warmup=True)
    x = torch.randn(shape)
    train = layer(x)
    before = copy.deepcopy(layer.state_dict())
    assert torch.equal(layer.eval()(x), train)
    for key, value in before.items():
        assert torch.equal(layer.state_dict()[key], value), key


def test_batch_of_one_is_learnt_from():
    """Images of batch 1 that differ in their mean: the estimates must see that as variance, as BatchNorm cannot."""
    torch.manual_seed(0)
    layer, batch_norm = BatchChannelNorm(4, 2, rate=0.02), nn.BatchNorm2d(4, momentum=0.02)
    for _ in range(600):
        x = torch.randn(1, 4, 6, 6) + 2 * torch.randn(1, 4, 1, 1)
        layer(x)
        batch_norm(x)
    assert layer.running_var.mean().item() == pytest.approx(5, rel=0.2)
    assert batch_norm.running_var.mean().item() == pytest.approx(1, rel=0.2)


def test_no_gradient_reaches_the_buffers():
    layer = BatchChannelNorm(8, 4)
    x = torch.randn(2, 8, 3, 3, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(not b.requires_grad and b.grad_fn is None for b in layer.buffers())


def test_two_forwards_before_a_backward():
    layer = BatchChannelNorm(8, 4, rate=0.5)
    first, second = (torch.randn(2, 8, 3, 3, requires_grad=True) for _ in range(2))
    (layer(first).square() * torch.arange(3)).sum().add((layer(second) ** 3).sum()).backward()
    alone = BatchChannelNorm(8, 4, rate=0.5)
    leaf = first.detach().requires_grad_()
    (alone(leaf).square() * torch.arange(3)).sum().backward()
    torch.testing.assert_close(first.grad, leaf.grad)


@pytest.mark.parametrize('statistics', ['estimated', 'batch'])
def test_channels_last(statistics):
    for shape, layout in (((2, 8, 4, 5), torch.channels_last), ((2, 8, 3, 4, 5), torch.channels_last_3d)):
        layers = [BatchChannelNorm(8, 4, statistics=statistics) for _ in range(2)]
        x = torch.randn(shape)
        out = layers[0](x.to(memory_format=layout))
        assert out.is_contiguous(memory_format=layout)
        plain = layers[1](x)
        assert plain.is_contiguous()
        torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layers[0].running_var, layers[1].running_var)


def test_empty_batch():
    layer = BatchChannelNorm(8, 4, warmup=True)
    assert layer(torch.zeros(0, 8, 3, 3)).shape == (0, 8, 3, 3)
    assert layer.num_batches_tracked == 0
    assert (layer.running_var == 1).all()


@pytest.mark.parametrize('statistics', ['estimated', 'batch'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_module_in_another_precision(statistics, dtype):
    layer = BatchChannelNorm(8, 4, statistics=statistics, warmup=True).to(dtype)
    x = torch.randn(2, 8, 5, 5).to(dtype).requires_grad_()
    out = layer(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == layer.group_weight.grad.dtype == layer.running_var.dtype == dtype
    assert out.isfinite().all()
    expected = BatchChannelNorm(8, 4, statistics=statistics, warmup=True)(x.detach().float())
    torch.testing.assert_close(out.float(), expected, atol=0.06, rtol=0.03)


def test_autocast():
    layer = BatchChannelNorm(8, 4)
    same = copy.deepcopy(layer)
    x = torch.randn(2, 8, 5, 5).bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert layer.running_var.dtype == torch.float32
    same(x.float())
    torch.testing.assert_close(layer.running_var, same.running_var)


def test_meta_device():
    layer = BatchChannelNorm(8, 4, device='meta')
    assert layer(torch.empty(2, 8, 3, device='meta')).shape == (2, 8, 3)
    real = layer.to_empty(device='cpu')
    real.reset_parameters()
    assert torch.equal(real(torch.ones(1, 8, 2)), BatchChannelNorm(8, 4)(torch.ones(1, 8, 2)))


@pytest.mark.parametrize(
    'options', [{}, {'warmup': True}, {'statistics': 'batch'}, {'statistics': 'sync'}, {'affine': 'channel'}]
)
def test_compiles_in_one_graph(options):
    torch.compiler.reset()
    layer = BatchChannelNorm(8, 4, **options)
    same = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    for _ in range(2):
        x, x_same = (torch.arange(144.0).sin().view(2, 8, 3, 3).requires_grad_() for _ in range(2))
        out, expected = compiled(x), same(x_same)
        (out**3).sum().backward()
        (expected**3).sum().backward()
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(x.grad, x_same.grad, atol=1e-5, rtol=1e-4)
    for key, value in same.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value)


CHECKPOINTED = [
    ({}, 'once'),
    ({'warmup': True}, 'once'),
    ({'statistics': 'batch'}, 'once'),
    ({'statistics': 'batch'}, 'called twice'),
    ({'rate': 0.3}, 'compiled'),
]


@pytest.mark.parametrize('use_reentrant', [True, False])
@pytest.mark.parametrize(('options', 'how'), CHECKPOINTED, ids=str)
def test_activation_checkpointing_changes_nothing(options, how, use_reentrant):
    """Outputs, gradients and buffers, bit for bit; live statistics with two calls of the layer too."""
    torch.compiler.reset()
    layers = [BatchChannelNorm(8, 4, **options) for _ in range(2)]
    results = []
    for layer, saving in zip(layers, (False, True), strict=True):
        run = torch.compile(layer, fullgraph=True, backend='aot_eager') if how == 'compiled' else layer
        for step in range(3):
            layer.zero_grad()
            x = (torch.arange(144.0).sin().view(2, 8, 3, 3) + step).requires_grad_()
            out = checkpoint(run, x, use_reentrant=use_reentrant) if saving else run(x)
            if how == 'called twice':
                out = run(out) if not saving else checkpoint(run, out, use_reentrant=use_reentrant)
            (out**3).sum().backward()
        state = [*layer.buffers(), *(p.grad for p in layer.parameters())]
        results.append([out.detach(), x.grad, *state])
    for plain, saved in zip(*results, strict=True):
        assert torch.equal(plain, saved)
    assert int(layers[1].num_batches_tracked) == (6 if how == 'called twice' else 3)


@pytest.mark.parametrize('use_reentrant', [True, False])
def test_recomputing_two_forwards_is_refused_where_the_estimates_moved_between_them(use_reentrant):
    layer = BatchChannelNorm(8, 4)
    x = torch.randn(2, 8, 3, requires_grad=True)
    for attempt in range(2):
        out = checkpoint(layer, x, use_reentrant=use_reentrant)
        out = checkpoint(layer, out, use_reentrant=use_reentrant)
        with pytest.raises(RuntimeError) as error:
            out.square().sum().backward()
        assert str(error.value) == (
            'activation checkpointing recomputes two forwards of one BatchChannelNorm in one backward pass, but its '
            'running statistics have moved since the first: move them once per optimizer step, with '
            'wsbcn_mm.microbatch.StepStatistics(model) and its commit() after optimizer.step()'
        ), attempt
    checkpoint(layer, x, use_reentrant=use_reentrant).sum().backward()


def test_forwards_without_a_backward_may_precede_a_checkpointed_one():
    layer, plain = BatchChannelNorm(8, 4), BatchChannelNorm(8, 4)
    x = torch.randn(2, 8, 3, requires_grad=True)
    for norm in (layer, plain):
        for _ in range(3):
            norm(torch.ones(1, 8, 2))
    for _ in range(2):
        grads = [
            torch.autograd.grad((out**3).sum(), x)[0] for out in (checkpoint(layer, x, use_reentrant=False), plain(x))
        ]
        assert torch.equal(*grads)


def test_nested_checkpointing_recomputes_twice():
    layer, plain = BatchChannelNorm(8, 4), BatchChannelNorm(8, 4)
    x = torch.randn(2, 8, 3, requires_grad=True)

    def inner(x):
        return checkpoint(layer, x, use_reentrant=False).sin()

    for _ in range(2):
        out = checkpoint(inner, x, use_reentrant=False)
        grads = [torch.autograd.grad((y**3).sum(), x)[0] for y in (out, plain(x).sin())]
        assert torch.equal(*grads)
    assert torch.equal(layer.running_var, plain.running_var)


def test_copies_behave_alike():
    layer = BatchChannelNorm(8, 4, rate=0.2, warmup=True, affine='channel')
    layer(torch.randn(2, 8, 3))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(other) == repr(layer)
        x = torch.randn(2, 8, 3)
        assert torch.equal(other.eval()(x), layer.eval()(x))
        other.train()(x)
        assert not torch.equal(other.running_mean, layer.running_mean)


def test_repr_says_what_matters():
    assert repr(BatchChannelNorm(64, warmup=True)) == (
        'BatchChannelNorm(64, groups=32, statistics=estimated, rate=0.1, warmup, affine=group, eps=1e-05)'
    )


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(8), nn.GroupNorm(4, 8), nn.SyncBatchNorm(8)], ids=repr)
def test_zero_init_of_ordinary_norms(norm):
    zero_init_last_norm_(norm)
    assert (norm.weight == 0).all()
    assert not has_zeroed_batch_half(norm)


@pytest.mark.parametrize('affine', ['group', 'channel'])
def test_zero_init_of_bcn(affine):
    norm = BatchChannelNorm(8, 4, affine=affine)
    zero_init_last_norm_(norm)
    assert (norm.group_weight == 0).all()
    assert (norm.weight == 1).all()
    assert not has_zeroed_batch_half(norm)
    x = torch.randn(2, 8, 3, 3, requires_grad=True)
    out = norm(x)
    assert (out == 0).all()
    out.square().add(out).sum().backward()
    assert norm.group_weight.grad.isfinite().all()
    nn.init.zeros_(norm.weight)
    assert has_zeroed_batch_half(norm)


def test_zeroing_the_batch_half_multiplies_gradients():
    """Why zero_init_last_norm_ takes group_weight: a zero map divided by sqrt(eps) has slope 316."""
    norm = BatchChannelNorm(8, 4)
    x, direction = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6)
    (norm(x) * direction).sum().backward()
    usual = norm.weight.grad.norm()
    nn.init.zeros_(norm.weight)
    norm.zero_grad()
    (norm(x) * direction).sum().backward()
    assert norm.weight.grad.norm() > 100 * usual


def test_zero_init_needs_a_scale():
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        zero_init_last_norm_(nn.Identity())
    assert str(error.value) == 'norm=Identity(): a layer with a scale, group_weight or weight, is expected'


@pytest.mark.parametrize('statistics', ['estimated', 'batch', 'sync'])
@pytest.mark.parametrize('training', [True, False])
def test_residual_and_relu_ride_along(statistics, training):
    plain, fused = (BatchChannelNorm(8, 4, statistics=statistics).train(training) for _ in range(2))
    x, residual = torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(fused(x, residual, relu=True), (plain(x) + residual).relu())
    torch.testing.assert_close(fused(x, relu=True), plain(x).relu())
    torch.testing.assert_close(fused.running_var, plain.running_var)
