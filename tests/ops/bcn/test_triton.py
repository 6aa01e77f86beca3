"""The Triton passes and algebra of one-pass BCN against the formulas in float64, forward and every gradient.

On a GPU if there is one; anywhere in Triton's interpreter. That is chosen by the environment before triton is imported,
hence `test_passes_in_the_interpreter`, which runs this file in a process of its own.
"""

import itertools
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip('triton')

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wsbcn_mm.ops.bcn import triton as kernels
from wsbcn_mm.ops.bcn import triton_algebra as algebra
from wsbcn_mm.ops.bcn import triton_passes as passes
from wsbcn_mm.ops.bcn.algebra import Affines, ChannelStatistics, Moments, Options

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
EPS = 1e-5
RATE = 0.3
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
STATISTICS = ['estimated', 'batch', 'frozen']

in_own_process = pytest.mark.skipif(INTERPRETED, reason='needs compiled kernels')


@pytest.fixture(params=['cpu'] if INTERPRETED else [pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    return request.param


class Layer(NamedTuple):
    """A BCN layer's buffers and parameters, any of the latter None, and its choices."""

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    group_weight: Tensor | None
    group_bias: Tensor | None
    num_groups: int
    statistics: str = 'estimated'
    relu: bool = True

    @property
    def running(self) -> ChannelStatistics:
        return ChannelStatistics(*self[:2])

    @property
    def affines(self) -> Affines:
        return Affines(*self[2:6])

    @property
    def options(self) -> Options:
        return Options(self.num_groups, self.statistics, self.relu, EPS)


def make_layer(channels: int, num_groups: int, device: str, *, affine: str = 'group', **choices) -> Layer:
    """affine: 'group' or 'channel' for the size of the group parameters, 'none' for no parameter at all."""
    statistics = [torch.randn(channels), torch.rand(channels) + 0.5]
    size = {'group': num_groups, 'channel': channels}.get(affine)
    parameters = [None] * 4 if size is None else [torch.randn(s) for s in (channels, channels, size, size)]
    tensors = [None if t is None else t.to(device) for t in (*statistics, *parameters)]
    return Layer(*tensors, num_groups, **choices)


def make_input(shape: tuple[int, ...], device: str, *, channels_last: bool = False, dtype=torch.float32) -> Tensor:
    x = (2 * torch.randn(shape) + 1).to(device, dtype)
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim]) if channels_last else x


class Result(NamedTuple):
    y: Tensor
    statistics: tuple[Tensor, ...]
    """Mean and second moment of the batch, mean and variance that the batch half used, each (C,)."""
    grads: list[Tensor]
    """Of x, the parameters that are not None, and the residual if there is one."""


def computed(
    x: Tensor,
    dy: Tensor,
    layer: Layer,
    residual: Tensor | None = None,
    *,
    parts: int | None = None,
    keep_output: bool = False,
    rate: float | Tensor = RATE,
) -> Result:
    """What the kernels make of it."""
    positions = x[0, 0].numel()
    moments = Moments(*passes.channel_moments(x, parts))
    folded = algebra.forward_algebra(moments, layer.running, layer.affines, rate, layer.options, positions)
    map_ = folded.moments.mean, folded.scale, folded.shift, residual
    y = passes.affine(x, *map_, layer.relu)
    kept = y if keep_output else None
    sums = passes.gradient_sums(dy, x, *map_, layer.relu, kept, parts)
    *coefficients, daffines = algebra.backward_algebra(*sums, folded, layer.affines, layer.options, positions)
    dx, dresidual = passes.gradient_map(dy, x, *map_, layer.relu, *coefficients, kept)
    assert (dresidual is None) == (residual is None and kept is None)
    found = (dx, *daffines, None if residual is None else dresidual)
    return Result(y, (*folded.batch, *folded.half), [g for g in found if g is not None])


def formulas(x: Tensor, layer: Layer, residual: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Algorithm 1 of arXiv 1903.10520 v2 in plain tensor operations: output and `Result.statistics`."""

    def column(values: Tensor) -> Tensor:
        return values.repeat_interleave(x.shape[1] // values.numel()).view(1, -1, *[1] * (x.ndim - 2))

    over = [0, *range(2, x.ndim)]
    batch_mean = x.mean(over)
    around = batch_mean if layer.statistics == 'batch' else layer.running_mean
    second = (x - column(around)).square().mean(over)
    half = {
        'batch': (batch_mean, second),
        'frozen': (layer.running_mean, layer.running_var),
        'estimated': (
            torch.lerp(layer.running_mean, batch_mean, RATE).detach(),
            torch.lerp(layer.running_var, second, RATE).detach(),
        ),
    }[layer.statistics]
    out = (x - column(half[0])) / (column(half[1]) + EPS).sqrt()
    if layer.weight is not None:
        out = out * column(layer.weight) + column(layer.bias)
    grouped = out.reshape(x.shape[0], layer.num_groups, -1)
    variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
    out = ((grouped - mean) / (variance + EPS).sqrt()).view(x.shape)
    if layer.group_weight is not None:
        out = out * column(layer.group_weight) + column(layer.group_bias)
    if residual is not None:
        out = out + residual
    return out.relu() if layer.relu else out, (batch_mean, second, *half)


def expected(x: Tensor, dy: Tensor, layer: Layer, residual: Tensor | None = None) -> Result:
    """The formulas in float64, differentiated by autograd."""

    def leaf(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().double().requires_grad_()

    x, residual, *parameters = map(leaf, (x, residual, *layer.affines))
    buffers = layer.running_mean.double(), layer.running_var.double()
    y, statistics = formulas(x, Layer(*buffers, *parameters, *layer[6:]), residual)
    leaves = [t for t in (x, *parameters, residual) if t is not None]
    return Result(y.detach(), tuple(t.detach() for t in statistics), list(torch.autograd.grad(y, leaves, dy.double())))


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, scale: float = 1.0) -> None:
    """Within `tolerance` of the largest value, or of `scale` where everything is smaller."""
    assert found.isfinite().all()
    largest = max(wanted.abs().max().item(), scale)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * largest)


def check(x: Tensor, layer: Layer, *, with_residual: bool = False, tolerance: float = 2e-5, **options) -> None:
    """`computed` against `expected` for one input."""
    dy = torch.randn_like(x)
    residual = torch.randn_like(x) if with_residual else None
    found, wanted = computed(x, dy, layer, residual, **options), expected(x, dy, layer, residual)
    assert (found.y.dtype, found.y.stride()) == (x.dtype, x.stride())
    low = max(tolerance, torch.finfo(x.dtype).eps)
    assert_close(found.y, wanted.y, low)
    for ours, theirs in zip(found.statistics, wanted.statistics, strict=True):
        assert_close(ours, theirs, tolerance)
    for ours, theirs in zip(found.grads, wanted.grads, strict=True):
        assert_close(ours, theirs, 2 * low if ours.dtype == x.dtype else tolerance)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('statistics', STATISTICS)
def test_forward_and_every_gradient(
    device: str, statistics: str, relu: bool, with_residual: bool, channels_last: bool
) -> None:
    torch.manual_seed(0)
    x = make_input((2, 6, 5, 29), device, channels_last=channels_last)
    layer = make_layer(6, 2, device, statistics=statistics, relu=relu)
    check(x, layer, with_residual=with_residual, parts=2, keep_output=with_residual and statistics == 'batch')


@pytest.mark.parametrize(
    ('shape', 'num_groups'),
    [
        ((2, 4, 2), 2),
        ((2, 33, 5, 29), 11),
        ((3, 6, 1025), 6),  # groups of one channel
        ((1, 3, 70, 70), 1),
        ((2, 100, 5, 7), 2),
        ((5, 6, 3, 3), 3),
        ((2, 24, 3, 5, 9), 8),
        ((1, 130, 1, 2, 67), 5),
    ],
)
@pytest.mark.parametrize('channels_last', [False, True])
def test_odd_sizes(device: str, shape: tuple[int, ...], num_groups: int, channels_last: bool) -> None:
    if channels_last and len(shape) not in CHANNELS_LAST:
        pytest.skip('no such layout')
    torch.manual_seed(1)
    x = make_input(shape, device, channels_last=channels_last)
    check(x, make_layer(shape[1], num_groups, device, affine='channel'), with_residual=True)


@pytest.mark.parametrize('statistics', STATISTICS)
@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('affine', ['group', 'none'])
def test_whole_operator(device: str, with_residual: bool, affine: str, statistics: str) -> None:
    """Forward and backward as the dispatcher calls them, from what it keeps in between."""
    layer = make_layer(12, 4, device, affine=affine, statistics=statistics)
    x, dy, residual = (make_input((2, 12, 5, 7), device) for _ in range(3))
    residual = residual if with_residual else None
    wanted = expected(x, dy, layer, residual)
    rate = torch.tensor(RATE, device=device)
    y, half, batch, moments = kernels.forward(x, residual, layer.running, layer.affines, rate, layer.options)
    out = y if with_residual else None
    dx, dz, daffines = kernels.backward(dy, x, out, half, moments, layer.affines, layer.options)
    assert_close(y, wanted.y, 2e-5)
    if statistics != 'frozen':
        for found, exact in zip((*batch, *half), wanted.statistics, strict=True):
            assert_close(found, exact, 2e-5)
    found = [dx, *(g for g in daffines if g is not None), *([dz] if with_residual else [])]
    for gradient, exact in zip(found, wanted.grads, strict=True):
        assert_close(gradient, exact, 2e-5)


@pytest.mark.parametrize('parts', [1, 2, 3, 7, 100])
@pytest.mark.parametrize('channels_last', [False, True])
def test_any_split_of_the_positions(device: str, channels_last: bool, parts: int) -> None:
    torch.manual_seed(12)
    x = make_input((1, 3, 21, 31), device, channels_last=channels_last)
    check(x, make_layer(3, 1, device), parts=parts)


@pytest.mark.parametrize('shape', [(1, 6, 1, 1), (4, 6, 1, 1), (3, 6)])
@pytest.mark.parametrize('statistics', STATISTICS)
def test_one_position(device: str, shape: tuple[int, ...], statistics: str) -> None:
    torch.manual_seed(2)
    check(make_input(shape, device), make_layer(6, 2, device, statistics=statistics), tolerance=1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('statistics', STATISTICS)
def test_low_precision_rounds_only_at_the_end(
    device: str, statistics: str, channels_last: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(3)
    x = make_input((2, 12, 9, 15), device, channels_last=channels_last, dtype=dtype)
    check(x, make_layer(12, 3, device, statistics=statistics, relu=False), parts=2)


def test_residual_of_another_dtype_and_layout(device: str) -> None:
    torch.manual_seed(4)
    x = make_input((2, 8, 4, 6), device, dtype=torch.bfloat16)
    residual = make_input((2, 8, 4, 6), device, channels_last=True)
    dy = torch.randn_like(residual, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    layer = make_layer(8, 2, device)
    found, wanted = computed(x, dy, layer, residual), expected(x, dy, layer, residual)
    assert found.grads[-1].dtype == torch.float32
    for ours, theirs in zip((found.y, *found.grads), (wanted.y, *wanted.grads), strict=True):
        assert_close(ours, theirs, 2**-7)  # the interpreter truncates to bfloat16


def test_gradient_of_a_sum_has_no_strides(device: str) -> None:
    torch.manual_seed(5)
    x = make_input((2, 8, 4, 6), device, channels_last=True)
    layer, dy = make_layer(8, 2, device), torch.ones((), device=device).expand(2, 8, 4, 6)
    found, wanted = computed(x, dy, layer), expected(x, dy, layer)
    for ours, theirs in zip(found.grads, wanted.grads, strict=True):
        assert_close(ours, theirs, 2e-5)


@pytest.mark.parametrize('missing', [(2,), (3,), (4,), (5,), (2, 3, 4, 5)])
def test_parameters_may_be_missing(device: str, missing: tuple[int, ...]) -> None:
    """None is the same as ones or zeros, and has no gradient."""
    torch.manual_seed(6)
    x = make_input((2, 8, 3, 5), device)
    dy = torch.randn_like(x)
    neutral = make_layer(8, 4, device)
    for field in missing:
        neutral[field].fill_(1 if field in (2, 4) else 0)
    without = Layer(*(None if i in missing else value for i, value in enumerate(neutral)))
    found, wanted = computed(x, dy, without), computed(x, dy, neutral)
    wanted_grads = [g for i, g in enumerate(wanted.grads, start=1) if i not in missing]
    for ours, theirs in zip((found.y, *found.grads), (wanted.y, *wanted_grads), strict=True):
        assert_close(ours, theirs.double(), 1e-6)


@pytest.mark.parametrize('statistics', STATISTICS)
def test_many_samples_go_tile_by_tile(device: str, statistics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 2 samples by 4 channels and 2 parts, of 5 samples, 3 channels a group and 3 parts."""
    torch.manual_seed(7)
    monkeypatch.setattr(algebra, 'TILE', 8)
    x = make_input((5, 6, 150), device)
    check(x, make_layer(6, 2, device, statistics=statistics), parts=3)


@pytest.mark.parametrize('on_device', [False, True])
def test_rate_in_a_tensor(device: str, on_device: bool) -> None:
    torch.manual_seed(8)
    x = make_input((2, 6, 3, 5), device)
    rate = torch.tensor(RATE, device=device if on_device else 'cpu')
    check(x, make_layer(6, 2, device), rate=rate)


@pytest.mark.parametrize('statistics', STATISTICS)
@pytest.mark.parametrize('parts', [1, 4])
def test_mean_of_a_thousand_deviations(device: str, statistics: str, parts: int) -> None:
    torch.manual_seed(9)
    x = torch.randn(2, 6, 16, 20).add(1000).to(device)
    layer = make_layer(6, 2, device, statistics=statistics, relu=False)._replace(
        running_mean=torch.full((6,), 1000.0, device=device)
    )
    mean, var = passes.channel_moments(x, parts)
    if parts == 1:
        true_var, true_mean = torch.var_mean(x.double(), (2, 3), correction=0)
        torch.testing.assert_close(mean[0].double(), true_mean, rtol=2e-7, atol=0)
        torch.testing.assert_close(var[0].double(), true_var, rtol=1e-5, atol=0)
    dy = torch.randn_like(x)
    found, wanted = computed(x, dy, layer, parts=parts), expected(x, dy, layer)
    # What float32 leaves of the mean, 6e-5 deviations, shifts the output by as much.
    assert_close(found.y, wanted.y, 2e-4)
    assert_close(found.grads[0], wanted.grads[0], 2e-3)


@pytest.mark.parametrize('parts', [1, 3])
def test_constant_channels_keep_their_value(device: str, parts: int) -> None:
    """Exactly: any variance that rounding made would be divided by the root of eps, hundredfold."""
    x = torch.tensor([0.1, 1000.3, -7e-6]).view(1, 3, 1, 1).expand(2, 3, 11, 19).contiguous().to(device)
    layer = make_layer(3, 3, device, statistics='batch', relu=False)
    moments = Moments(*passes.channel_moments(x, parts))
    folded = algebra.forward_algebra(moments, None, layer.affines, 0.0, layer.options, 11 * 19)
    assert torch.equal(folded.moments.mean, x[:, :, 0, 0])
    assert not folded.moments.var.any()
    y = passes.affine(x, folded.moments.mean, folded.scale, folded.shift, None, False)
    assert torch.equal(y, layer.group_bias.view(1, 3, 1, 1).expand_as(y))


def test_the_map_can_be_made_again_from_what_backward_keeps(device: str) -> None:
    torch.manual_seed(11)
    x, layer = make_input((3, 8, 40, 10), device), make_layer(8, 2, device)
    moments = Moments(*passes.channel_moments(x, 3))
    first = algebra.forward_algebra(moments, layer.running, layer.affines, RATE, layer.options, 400)
    whole, frozen = Moments(*(t[None] for t in first.moments)), layer.options._replace(statistics='frozen')
    again = algebra.forward_algebra(whole, first.half, layer.affines, RATE, frozen, 400)
    assert_close(again.scale, first.scale.double(), 1e-6)
    assert_close(again.shift, first.shift.double(), 1e-6)


def test_nan_stays_nan_through_relu(device: str) -> None:
    x = make_input((1, 4, 3, 3), device)
    x[0, 1, 1, 1] = torch.nan
    result = computed(x, torch.ones_like(x), make_layer(4, 2, device))
    assert result.y[0, :2].isnan().all()
    assert result.y[0, 2:].isfinite().all()


def test_same_bits_in_every_run(device: str) -> None:
    x = make_input((1, 4, 30, 30), device)
    dy, layer = torch.randn_like(x), make_layer(4, 1, device)
    first, second = (computed(x, dy, layer, x, parts=6) for _ in range(2))
    assert all(map(torch.equal, (first.y, *first.grads), (second.y, *second.grads)))


def guarded(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A contiguous tensor within a larger one, which is NaN everywhere."""
    size, band = torch.Size(shape).numel(), 4096
    whole = torch.full((size + 2 * band,), torch.nan, dtype=dtype, device=device)
    return whole[band : band + size].view(shape), whole


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('shape', 'num_groups'), [((2, 33, 5, 13), 11), ((1, 5, 23, 29), 5)])
def test_everything_is_written_and_nothing_beside_it(
    device: str, shape: tuple[int, ...], num_groups: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor, read or written, lies between bands of NaN: read, they spoil a result; written, they change."""
    torch.manual_seed(10)
    kept = []

    def within_nan(like: Tensor, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Tensor:
        last = shape is None and channels_last and like.ndim == 4
        sizes = torch.Size(like.shape if shape is None else (shape,) if isinstance(shape, int) else shape)
        sizes = (sizes[0], *sizes[2:], sizes[1]) if last else sizes
        tensor, whole = guarded(sizes, dtype or like.dtype, like.device)
        kept.append((tensor.numel(), whole))
        return tensor.movedim(-1, 1) if last else tensor

    def copy(t: Tensor) -> Tensor:
        return within_nan(t).copy_(t)

    x = make_input(shape, device, channels_last=channels_last)
    layer = make_layer(shape[1], num_groups, device)
    wanted_dy, wanted_residual = torch.randn_like(x), torch.randn_like(x)
    wanted = expected(x, wanted_dy, layer, wanted_residual)
    inputs = [copy(t) for t in (x, wanted_dy, wanted_residual)]
    layer = Layer(*(copy(t) for t in layer[:6]), *layer[6:])
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'empty_like', lambda t, dtype=None: within_nan(t, dtype=dtype))
        if not INTERPRETED:  # the interpreter itself makes tensors so
            patch.setattr(Tensor, 'new_empty', within_nan)
        found = computed(*inputs[:2], layer, inputs[2], parts=2)
    assert_close(found.y, wanted.y, 2e-5)
    for ours, theirs in zip(found.grads, wanted.grads, strict=True):
        assert_close(ours, theirs, 2e-5)
    assert len(kept) >= 9 + 4 + 1 + 2 + 4 + 2  # inputs; rows, y, q and s, gradients of parameters and of data
    for size, whole in kept:
        band = (whole.numel() - size) // 2
        assert whole[:band].isnan().all()
        assert whole[band + size :].isnan().all()
        assert whole[band : band + size].isfinite().all()


@pytest.mark.gpu
@in_own_process
def test_more_than_2_to_the_31_elements() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 24e9:
        pytest.skip('needs a CUDA device with 24 GB')
    for channels_last in (False, True):
        x = torch.zeros(2, 65, 4096, 4096, dtype=torch.bfloat16, device='cuda')
        if channels_last:
            x = x.view(2, 4096, 4096, 65).movedim(-1, 1)
        x[-1, -1, -1, -2:] = torch.tensor([3.0, 5.0])
        mean, _ = passes.channel_moments(x)
        assert mean[-1, -1, -1] > 0
        assert not mean[:, 0].any()
        one, zero = torch.ones_like(mean[0]), torch.zeros_like(mean[0])
        y = passes.affine(x, zero, 2 * one, one, None, True)
        assert y[-1, -1, -1, -3:].tolist() == [1.0, 7.0, 11.0]
        del x, y


@pytest.mark.parametrize('multiprocessors', [1, 20, 132])
def test_the_parts_cover_all_positions_and_fill_the_device(multiprocessors: int) -> None:
    shapes = itertools.product([1, 2, 16], [1, 3, 33, 64, 2048], [1, 49, 1089, 16641, 65536, 2**20])
    for (samples, rows, positions), channels_last in itertools.product(shapes, [False, True]):
        view = passes.View(samples if channels_last else 1, rows, positions, channels_last)
        block_rows, block_positions = view.blocks()
        assert block_rows * block_positions <= passes.TILE
        assert view.row_blocks() == view.samples * triton.cdiv(rows, block_rows)
        parts = passes.split(view, multiprocessors)
        length = passes.part_length(positions, parts)
        assert (parts - 1) * length < positions <= parts * length
        tiles = view.row_blocks() * triton.cdiv(positions, block_positions)
        assert view.row_blocks() * parts >= min(multiprocessors * passes.PROGRAMS_PER_SM, tiles) // 2


@pytest.mark.parametrize('positions', [1, 63, 64, 65, 1000, 16641])
def test_any_number_of_parts_is_rounded_to_parts_that_hold_something(positions: int) -> None:
    for wanted in range(1, 300):
        parts = passes.whole_parts(positions, wanted)
        length = passes.part_length(positions, parts)
        assert 1 <= parts <= wanted
        assert (parts - 1) * length < positions <= parts * length


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(TypeError, match=r'^x\.dtype=torch\.float64: float32, bfloat16 or float16 is expected$'):
        passes.channel_moments(torch.zeros(1, 2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r'^x\.shape=\(0, 2, 3\): at least one value is expected$'):
        passes.channel_moments(torch.zeros(0, 2, 3))
    with pytest.raises(
        ValueError,
        match=r'^x\.stride\(\)=\(1, 2, 6\): contiguous or channels last is expected for x\.shape=\(2, 3, 4\)$',
    ):
        passes.channel_moments(torch.zeros(4, 3, 2).permute(2, 1, 0))


@in_own_process
@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on an idle core
def test_passes_in_the_interpreter() -> None:
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', __file__, '-p', 'no:cacheprovider', '-k', 'cpu'],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(run.stdout.split(' passed')[0].split()[-1]) > 80, run.stdout


def compiled(kernel: triton.JITFunction, constants: dict, data: str, capability: int) -> str:
    """PTX of a kernel whose pointers and sizes are multiples of 16, without a GPU."""
    pointers = {'x_ptr', 'y_ptr', 'dy_ptr', 'dx_ptr', 'residual_ptr', 'dresidual_ptr'}
    signature = {
        name: 'constexpr' if name in constants
        else f'*{data}' if name in pointers
        else '*fp32' if name.endswith('_ptr')
        else '*fp32' if name == 'rate' and constants['RATE_IN_MEMORY']
        else 'fp32' if name in ('eps', 'rate')
        else 'i32'
        for name in kernel.arg_names
    }  # fmt: skip
    aligned = {
        (i,): [['tt.divisibility', 16]]
        for i, kind in enumerate(signature.values())
        if kind.startswith('*') or kind == 'i32'
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32), options=dict(num_warps=4)).asm['ptx']


@in_own_process
@pytest.mark.parametrize(('data', 'capability'), [('fp32', 80), ('bf16', 90)])
def test_kernels_compile_to_16_byte_loads(data: str, capability: int) -> None:
    for channels_last in (False, True):
        tile = passes.View(2, 64, 4096, channels_last).options()
        del tile['num_warps']
        for kernel, constants, streams in (
            (passes._moments_kernel, tile, 1),
            (passes._affine_kernel, dict(tile, RELU=True), 2),
            (passes._gradient_sums_kernel, dict(tile, RELU=True, y_ptr=None), 3),
            (passes._gradient_map_kernel, dict(tile, RELU=True, residual_ptr=None), 3),
        ):
            ptx = compiled(kernel, constants, data, capability)
            per_thread = passes.TILE // (32 * passes.NUM_WARPS) * (4 if data == 'fp32' else 2) // 16
            assert ptx.count('ld.global.v4.b32') >= streams * per_thread, (kernel.fn.__name__, channels_last)


@in_own_process
def test_passes_compile_for_sizes_of_one() -> None:
    """A size of 1 is a constant to the compiler."""
    ones = dict(samples=1, rows=1, positions=1, parts=1)
    for channels_last in (False, True):
        tile = dict(BLOCK_R=1, BLOCK_L=1, CHANNELS_LAST=channels_last, EVEN_ROWS=True, RELU=True, **ones)
        for kernel in (
            passes._moments_kernel,
            passes._affine_kernel,
            passes._gradient_sums_kernel,
            passes._gradient_map_kernel,
        ):
            constants = {name: value for name, value in tile.items() if name in kernel.arg_names}
            assert 'st.global' in compiled(kernel, constants, 'fp32', 90)


@in_own_process
@pytest.mark.parametrize('statistics', STATISTICS)
def test_algebra_compiles(statistics: str) -> None:
    """With 'batch' statistics also without estimates and parameters, and for whole rows."""
    tiles = dict(GROUP_WEIGHT_PER_GROUP=True, GROUP_BIAS_PER_GROUP=False, BLOCK_P=16, BLOCK_N=2, BLOCK_K=32)
    live = statistics == 'batch'
    forward, backward = dict(tiles, STATISTICS=statistics, RATE_IN_MEMORY=not live), dict(tiles, LIVE_HALF=live)
    if live:
        missing = ['weight_ptr', 'bias_ptr', 'group_weight_ptr', 'group_bias_ptr']
        forward.update(dict.fromkeys([*missing, 'running_mean_ptr', 'running_var_ptr']), BLOCK_P=1)
        backward.update(dict.fromkeys(missing[:3] + [f'd{name}' for name in missing]), BLOCK_P=1)
    assert 'st.global' in compiled(algebra._forward_kernel, forward, 'fp32', 90)
    assert 'st.global' in compiled(algebra._backward_kernel, backward, 'fp32', 90)
