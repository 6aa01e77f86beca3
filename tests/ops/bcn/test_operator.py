import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from wsbcn_mm.ops import batch_channel_norm
from wsbcn_mm.ops.bcn import aten, c
from wsbcn_mm.ops.bcn.algebra import Affines, ChannelStatistics, Options
from wsbcn_mm.ops.bcn.batch_channel_norm import normalize_and_measure
from wsbcn_mm.ops.bcn.reference import batch_channel_norm_steps

C_COMPILER = c._library() is not None
BACKENDS = [
    pytest.param(c, id='c', marks=pytest.mark.skipif(not C_COMPILER, reason='no C compiler')),
    pytest.param(aten, id='aten'),
]
STATISTICS = ('estimated', 'batch', 'frozen')
EPS = 1e-5
NO_AFFINES = Affines(None, None, None, None)
SHAPES = [(1, 8, 6, 6), (3, 12, 5, 7), (2, 8, 3, 5, 7), (2, 12, 1031), (5, 8), (1, 8, 1, 1), (1, 4, 70, 90)]
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Case:
    """Random arguments of one call, in float64 for the reference and in `dtype` for the operator."""

    def __init__(self, shape, groups=4, affine='group', residual=False, dtype=torch.float32, mean=0.0, deviation=1.0):
        generator = torch.Generator().manual_seed(len(shape) * 100 + shape[1])

        def random(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        channels = shape[1]
        size = groups if affine == 'group' else channels
        self.groups = groups
        self.x = (random(*shape) * deviation + mean).to(dtype)
        self.residual = random(*shape).to(dtype) if residual else None
        self.dy = random(*shape).to(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        running = random(channels) * 0.3 * deviation + mean, (random(channels).abs() + 0.5) * deviation**2
        self.running = ChannelStatistics(*(t.to(wide) for t in running))
        self.affines = [t.to(wide) for t in (random(channels), random(channels), random(size), random(size))]
        if affine == 'none':
            self.affines = [None] * 4

    def options(self, statistics='estimated', relu=False):
        return Options(self.groups, statistics, relu, EPS)

    def run(self, function, dtype=None, statistics='estimated', relu=False, rate=0.3, layout=torch.contiguous_format):
        """Output, both moments and every gradient of `function`, all in float64."""

        def given(t, grad=True):
            if t is None:
                return None
            t = t.detach().to(dtype or t.dtype)
            return (
                t.contiguous(memory_format=layout).requires_grad_(grad)
                if t.ndim == self.x.ndim
                else t.requires_grad_(grad)
            )

        x, residual, affines = given(self.x), given(self.residual), [given(t) for t in self.affines]
        running = ChannelStatistics(*(given(t, False) for t in self.running))
        options = self.options(statistics, relu)
        out, measured = function(x, residual, running, Affines(*affines), rate, options)
        assert out.dtype == x.dtype
        assert out.stride() == x.stride()
        inputs = [t for t in (x, residual, *affines) if t is not None]
        return [t.double() for t in (out, *measured, *torch.autograd.grad(out, inputs, given(self.dy, False)))]


def assert_close(actual, expected, tolerance, readable=None):
    """Each to `tolerance` times the largest value expected, or to a few times what `readable` is off by."""
    names = ['out', 'mean', 'var', *(f'gradient {i}' for i in range(6))]
    for i, (name, a, e) in enumerate(zip(names, actual, expected, strict=False)):
        error, scale = (a - e).abs().max().item(), max(e.abs().max().item(), 0.1)
        allowed = tolerance * scale
        if readable is not None:
            allowed = max(allowed, 4 * (readable[i] - e).abs().max().item())
        assert error <= allowed, f'{name}: off by {error:.2e} where {allowed:.2e} is allowed'


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    if request.param is aten:
        monkeypatch.setattr(c, 'takes', lambda x: False)
    return request.param


@pytest.mark.parametrize('statistics', STATISTICS)
@pytest.mark.parametrize(
    ('relu', 'residual', 'affine'), [(0, 0, 'group'), (1, 0, 'channel'), (1, 1, 'group'), (0, 1, 'none')]
)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_agrees_with_the_readable_form(backend, shape, relu, residual, affine, statistics):
    if statistics == 'batch' and shape[0] * torch.Size(shape[2:]).numel() < 2:
        pytest.skip('batch statistics of one value are refused')
    case = Case(shape, affine=affine, residual=residual)
    options = {'statistics': statistics, 'relu': relu}
    expected = case.run(batch_channel_norm_steps, torch.float64, **options)
    # Where a group has few values its gradients are differences of large numbers, in the readable form as well.
    readable = case.run(batch_channel_norm_steps, **options)
    assert_close(case.run(normalize_and_measure, **options), expected, 1e-5, readable)


@pytest.mark.parametrize('groups', [1, 2, 12])
def test_any_number_of_groups(backend, groups):
    case = Case((2, 12, 5, 7), groups=groups)
    expected = case.run(batch_channel_norm_steps, torch.float64, relu=True)
    readable = case.run(batch_channel_norm_steps, relu=True)
    assert_close(case.run(normalize_and_measure, relu=True), expected, 1e-5, readable)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_statistics_in_float32(backend, dtype):
    case = Case((2, 8, 9, 11), dtype=dtype, deviation=100, residual=True)
    expected = case.run(batch_channel_norm_steps, torch.float64, relu=True)
    actual = case.run(normalize_and_measure, relu=True)
    assert_close(actual, expected, 4 * torch.finfo(dtype).eps)
    assert_close(actual[1:3], expected[1:3], 1e-5)


@pytest.mark.parametrize('statistics', STATISTICS)
@pytest.mark.parametrize(('relu', 'residual'), [(0, 0), (1, 0), (1, 1), (0, 1)])
@pytest.mark.parametrize(
    ('shape', 'groups'),
    [((3, 12, 5, 7), 4), ((2, 8, 3, 5, 7), 1), ((2, 64, 33, 29), 32), ((2, 160, 6, 6), 2), ((4, 96, 7, 9), 96)],
    ids=str,
)
def test_channels_last(backend, shape, groups, relu, residual, statistics):
    case = Case(shape, groups=groups, residual=residual)
    options = {'relu': relu, 'statistics': statistics}
    expected = case.run(batch_channel_norm_steps, torch.float64, **options)
    readable = case.run(batch_channel_norm_steps, **options)
    assert_close(case.run(normalize_and_measure, layout=CHANNELS_LAST[len(shape)], **options), expected, 1e-5, readable)


def test_double_precision():
    case = Case((3, 12, 5, 7), dtype=torch.float64, residual=True)
    assert_close(case.run(normalize_and_measure, relu=True), case.run(batch_channel_norm_steps, relu=True), 1e-13)


@pytest.mark.parametrize('statistics', STATISTICS)
def test_a_mean_of_a_thousand_deviations(backend, statistics):
    case = Case((2, 8, 40, 50), mean=1e3)
    expected = case.run(batch_channel_norm_steps, torch.float64, statistics=statistics)
    # Half a unit in the last place of the input is 3e-5 deviations.
    assert_close(case.run(normalize_and_measure, statistics=statistics), expected, 3e-4)


@pytest.mark.parametrize('value', [0.0, 0.1, 1e4])
def test_constant_input_is_finite(backend, value):
    case = Case((2, 8, 5, 7))
    case.x = torch.full_like(case.x, value)
    expected = case.run(batch_channel_norm_steps, torch.float64)
    assert_close(case.run(normalize_and_measure)[:3], expected[:3], 1e-4)
    assert all(t.isfinite().all() for t in case.run(normalize_and_measure, statistics='batch', relu=True))


def test_a_bad_value_is_not_hidden(backend):
    case = Case((1, 8, 5, 7))
    case.x[0, 3, 2, 2] = torch.nan
    out = case.run(normalize_and_measure, relu=True)[0]
    assert out[0, 2:4].isnan().all()
    assert not out[0, 4:].isnan().any()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_inputs_and_gradients_of_any_strides(layout):
    case = Case((2, 8, 6, 6))
    wide = torch.randn(2, 8, 6, 12)[..., ::2]
    case.x = wide
    expected = case.run(batch_channel_norm_steps, torch.float64, relu=True)
    x = wide.detach().requires_grad_()
    out, _ = normalize_and_measure(x, None, case.running, Affines(*case.affines), 0.3, case.options(relu=True))
    assert out.is_contiguous()
    (dx,) = torch.autograd.grad(out, x, case.dy.contiguous(memory_format=layout))
    assert_close([out.double(), dx.double()], [expected[0], expected[3]], 1e-5)
    out, _ = normalize_and_measure(x, None, case.running, Affines(*case.affines), 0.3, case.options())
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert dx.abs().max() < 1e-5


def test_runs_on_threads_to_the_same_bits(backend):
    case = Case((2, 64, 70, 70), residual=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = case.run(normalize_and_measure, relu=True)
        torch.set_num_threads(2)
        together = case.run(normalize_and_measure, relu=True)
    finally:
        torch.set_num_threads(before)
    if backend is c:
        assert all(torch.equal(a, t) for a, t in zip(alone, together, strict=True))
    assert_close(together, alone, 1e-5)


@pytest.mark.parametrize('statistics', STATISTICS)
@pytest.mark.parametrize('relu', [False, True])
def test_first_and_second_derivatives(statistics, relu):
    case = Case((2, 4, 2, 3), groups=2, residual=relu, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (case.x, *case.affines, case.residual) if t is not None]

    def function(x, *rest):
        # Rate 0: the estimates' dependence on x, which carries no gradient by design, must not show in differences.
        affines, residual = Affines(*rest[:4]), rest[4] if relu else None
        return normalize_and_measure(x, residual, case.running, affines, 0.0, case.options(statistics, relu))[0]

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('statistics', STATISTICS)
def test_operators_keep_torchs_contract(statistics, residual):
    case = Case((1, 8, 3, 4), residual=residual)
    options = (4, statistics, True, 1e-5)
    arguments = (case.x, case.residual, *case.running, *case.affines, torch.tensor(0.1), *options)
    torch.library.opcheck(torch.ops.wsbcn_mm.bcn.default, arguments)
    out, _, _, *kept = torch.ops.wsbcn_mm.bcn(*arguments)
    arguments = (case.dy, case.x, out if residual else None, *kept, *case.affines, *options)
    torch.library.opcheck(torch.ops.wsbcn_mm.bcn_backward.default, arguments)


def training_loss(x, filters, case, running_mean, running_var):
    options = {'num_groups': 4, 'rate': 0.1, 'training': True, 'relu': True}
    return batch_channel_norm(F.conv2d(x, filters), running_mean, running_var, *case.affines, **options).square().mean()


def test_compiles_as_one_graph():
    case = Case((1, 8, 4, 4))
    x, filters = torch.randn(1, 3, 6, 6), torch.randn(8, 3, 3, 3, requires_grad=True)
    eager, compiled = ([t.clone() for t in case.running] for _ in range(2))
    (expected,) = torch.autograd.grad(training_loss(x, filters, case, *eager), filters)
    loss = torch.compile(training_loss, fullgraph=True, backend='aot_eager')(x, filters, case, *compiled)
    (actual,) = torch.autograd.grad(loss, filters)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(compiled, eager)


class Normalized(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.randn(8))
        self.register_buffer('var', torch.rand(8) + 0.5)

    def forward(self, x):
        return batch_channel_norm(
            x, self.mean, self.var, None, None, None, None, num_groups=4, rate=0.1, training=self.training, relu=True
        )


def test_exported_graphs_hold_torchs_own_operators():
    model, x = Normalized().eval(), torch.randn(2, 8, 5, 5)
    exported = torch.export.export(model, (x,))
    assert 'wsbcn_mm' not in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), model(x))
    traced = torch.jit.trace(model, x)
    assert 'wsbcn_mm::' not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), model(x))


def test_shapes_without_data():
    with FakeTensorMode():
        x = torch.empty(2, 8, 5, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
        affines = [torch.ones(8, requires_grad=True) for _ in range(4)]
        out = batch_channel_norm(x, torch.zeros(8), torch.ones(8), *affines, num_groups=4, rate=0.1, training=True)
        out.sum().backward()
    assert (out.shape, out.dtype) == (x.shape, torch.bfloat16)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.shape == x.shape
    assert affines[0].grad.shape == (8,)


def test_autocast_leaves_the_dtype_alone():
    case = Case((1, 8, 4, 4))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        convolved = F.conv2d(torch.randn(1, 3, 6, 6), torch.randn(8, 3, 3, 3, requires_grad=True))
        out = batch_channel_norm(convolved, *case.running, *case.affines, num_groups=4, rate=0.1, training=True)
    assert out.dtype == convolved.dtype == torch.bfloat16


@pytest.mark.parametrize(('residual', 'activations'), [(False, 1), (True, 2)])
def test_backward_keeps_one_activation(residual, activations):
    """The input alone; with a residual its ReLU's output too, which the next layer's input is anyway."""
    case = Case((2, 32, 20, 20), residual=residual)
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        normalize_and_measure(
            case.x.requires_grad_(), case.residual, case.running, Affines(*case.affines), 0.1, case.options(relu=True)
        )
    per_channel_numbers = sum(kept.values()) - activations * case.x.nbytes
    assert 0 <= per_channel_numbers <= 4 * (2 * 2 * 32 + 4 * 32 + 2 * 4)


def test_empty_batch_says_nothing():
    running = ChannelStatistics(torch.randn(8), torch.rand(8))
    x = torch.empty(0, 8, 5, 5, requires_grad=True)
    out, measured = normalize_and_measure(x, None, running, NO_AFFINES, 0.5, Options(4, 'estimated', False, EPS))
    out.sum().backward()
    assert x.grad.shape == out.shape == x.shape
    torch.testing.assert_close(measured, running, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_without_a_process_group_sync_is_batch(dtype):
    case = Case((2, 8, 5, 5), residual=True, dtype=dtype)
    results = [case.run(normalize_and_measure, statistics=statistics, relu=True) for statistics in ('batch', 'sync')]
    assert all(map(torch.equal, *results))


def test_the_batchs_variance_is_measured_unbiased():
    case = Case((2, 8, 5, 5))
    expected = torch.var_mean(case.x, (0, 2, 3))
    for function in (normalize_and_measure, batch_channel_norm_steps):
        _, mean, var, *_ = case.run(function, statistics='batch')
        torch.testing.assert_close((var, mean), tuple(t.double() for t in expected))


def test_unknown_statistics():
    running, options = ChannelStatistics(torch.ones(4), torch.ones(4)), Options(2, 'live', False, EPS)
    with pytest.raises(ValueError, match="statistics='live': one of estimated, batch, sync, frozen is expected"):
        normalize_and_measure(torch.ones(2, 4), None, running, NO_AFFINES, 0.1, options)


@pytest.mark.parametrize(
    ('name', 'tensor', 'message'),
    [
        (
            'running_mean',
            torch.zeros(4),
            r'running_mean\.shape=\(4,\): \(8,\) is expected for x\.shape=\(2, 8, 5, 5\)$',
        ),
        ('running_var', torch.ones(8, 1), r'running_var\.shape=\(8, 1\): \(8,\) is expected for'),
        ('weight', torch.ones(1), r'weight\.shape=\(1,\): \(8,\) is expected for'),
        ('bias', torch.zeros(16), r'bias\.shape=\(16,\): \(8,\) is expected for'),
        ('group_weight', torch.ones(64), r'group_weight\.shape=\(64,\): \(4,\) or \(8,\) is expected for'),
        ('group_bias', torch.zeros(2), r'group_bias\.shape=\(2,\): \(4,\) or \(8,\) is expected for'),
        ('residual', torch.ones(2, 8, 1, 1), r'residual\.shape=\(2, 8, 1, 1\): \(2, 8, 5, 5\) is expected for'),
        ('weight', torch.ones(8, device='meta'), r'weight\.device=meta: cpu, the device of x, is expected'),
        (
            'residual',
            torch.ones(2, 8, 5, 5, device='meta'),
            r'residual\.device=meta: cpu, the device of x, is expected',
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, tensor, message):
    arguments = {'running_mean': torch.zeros(8), 'running_var': torch.ones(8)}
    arguments |= dict.fromkeys(('weight', 'bias', 'group_weight', 'group_bias', 'residual'))
    with pytest.raises(ValueError, match=message):
        batch_channel_norm(torch.ones(2, 8, 5, 5), **{**arguments, name: tensor}, num_groups=4, rate=0.1, training=True)


def test_second_derivatives_by_the_residual_alone():
    case = Case((2, 8, 3, 3), residual=True)
    case.residual.requires_grad_()
    out, _ = normalize_and_measure(
        case.x, case.residual, case.running, Affines(*case.affines), 0.1, case.options(relu=True)
    )
    (gradient,) = torch.autograd.grad(out.square().sum(), case.residual, create_graph=True)
    torch.testing.assert_close(gradient, 2 * out)
    (second,) = torch.autograd.grad(gradient.sum(), case.residual)
    torch.testing.assert_close(second, 2.0 * (out > 0))
