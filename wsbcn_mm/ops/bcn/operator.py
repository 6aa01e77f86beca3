"""BCN as one operator of torch, forward and backward each one reduction and one map over the data.

    torch.ops.wsbcn_mm.bcn            output, and the O(N*C) numbers that backward and the running statistics need
    torch.ops.wsbcn_mm.bcn_backward   every gradient

The device of the input chooses the passes: `c` or `aten` on CPU, `triton` on CUDA. `algebra` has the mathematics of
all three. Both operators are opaque to torch.compile, support FakeTensor propagation, and ignore autocast: the output
has the input's dtype. Backward keeps x and O(N*C) numbers, and recomputes ReLU's mask from them. With a residual it
also keeps the output, which the next layer keeps as its input anyway.

A schema lists tensors and numbers one by one. `_bcn` and `_kept_records` put them back into records.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..memory_format import in_layout_of, like_input
from . import aten, c
from .algebra import Affines, ChannelStatistics, Moments, Options
from .reference import batch_half, channel_half, moments

_DISPATCH_KEYS = ('CPU', 'CUDA')
_DTYPES: dict[str, tuple[torch.dtype, ...]] = {'cpu': (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
if importlib.util.find_spec('triton') is not None:
    _DTYPES['cuda'] = (torch.float32, torch.bfloat16, torch.float16)

_SHARED = 'Tensor? weight, Tensor? bias, Tensor? group_weight, Tensor? group_bias'
_OPTIONS = 'int num_groups, str statistics, bool relu, float eps'
torch.library.define(
    'wsbcn_mm::bcn',
    f'(Tensor x, Tensor? residual, Tensor running_mean, Tensor running_var, {_SHARED}, Tensor rate, {_OPTIONS}) -> '
    '(Tensor out, Tensor batch_mean, Tensor batch_var, Tensor half_mean, Tensor half_var, Tensor mean, Tensor var)',
)
torch.library.define(
    'wsbcn_mm::bcn_backward',
    f'(Tensor dy, Tensor x, Tensor? out, Tensor half_mean, Tensor half_var, Tensor mean, Tensor var, {_SHARED}, '
    f'{_OPTIONS}) -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias, Tensor dgroup_weight, '
    'Tensor dgroup_bias)',
)


def runs_in_one_pass(x: Tensor) -> bool:
    """Whether the operator supports x. Exported and traced graphs should contain torch's own operators instead."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    return x.numel() > 0 and x.dtype in _DTYPES.get(x.device.type, ())


def one_pass_batch_channel_norm(
    x: Tensor,
    residual: Tensor | None,
    running: ChannelStatistics,
    affines: Affines,
    rate: float | Tensor,
    options: Options,
) -> tuple[Tensor, ChannelStatistics]:
    """As `normalize_and_measure` in `batch_channel_norm.py`, which documents the arguments."""
    if not isinstance(rate, Tensor):
        rate = torch.full((), rate, dtype=running.mean.dtype, device=x.device)
    out, mean, var = _BatchChannelNorm.apply(options, x, residual, *running, *affines, rate)
    if options.statistics == 'batch':
        values = x.numel() // x.shape[1]
        var = var * (values / (values - 1))
    return out, ChannelStatistics(mean.to(running.mean.dtype), var.to(running.var.dtype))


def _passes(x: Tensor) -> ModuleType:
    if x.device.type == 'cuda':
        return importlib.import_module('.triton', __package__)  # imported here: CPU machines may lack triton
    return c if c.takes(x) else aten


def _kept_records(flat: Sequence[Any]) -> tuple[ChannelStatistics, Moments, Affines]:
    """What the forward keeps for the backward, besides x and the output."""
    return ChannelStatistics(*flat[:2]), Moments(*flat[2:4]), Affines(*flat[4:8])


@torch.library.impl('wsbcn_mm::bcn', _DISPATCH_KEYS)
def _bcn(x: Tensor, residual: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    x = like_input(x, x)
    running, affines, rate, options = ChannelStatistics(*flat[:2]), Affines(*flat[2:6]), flat[6], Options(*flat[7:])
    out, half, batch, of_x = _passes(x).forward(x, residual, running, affines, rate, options)
    if options.statistics != 'estimated':  # an operator's outputs share no memory with each other or with its inputs
        half, batch = (ChannelStatistics(pair.mean.clone(), pair.var.clone()) for pair in (half, batch))
    return out, *batch, *half, *of_x


@torch.library.impl('wsbcn_mm::bcn_backward', _DISPATCH_KEYS)
def _bcn_backward(dy: Tensor, x: Tensor, out: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    x = like_input(x, x)
    half, moments_of_x, affines = _kept_records(flat)
    dx, dresidual, daffines = _passes(x).backward(
        in_layout_of(dy, x),
        x,
        None if out is None else in_layout_of(out, x),
        half,
        moments_of_x,
        affines,
        Options(*flat[8:]),
    )
    if out is None:
        dresidual = dx.new_empty(0)
    return dx, dresidual, *(_shaped_as(a, d, half.mean) for a, d in zip(affines, daffines, strict=True))


def _shaped_as(affine: Tensor | None, gradient: Tensor | None, per_channel: Tensor) -> Tensor:
    """A gradient per channel, summed over each group's channels where the affine is one per group."""
    if gradient is None:
        return torch.zeros_like(per_channel)
    if affine is None or affine.numel() == gradient.numel():
        return gradient
    return gradient.view(affine.numel(), -1).sum(1)


def _bcn_fake(x: Tensor, residual: Tensor | None, running_mean: Tensor, *_: Any) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    per_channel = [running_mean.new_empty(x.shape[1], dtype=dtype) for _ in range(4)]
    return like_input(torch.empty_like(x), x), *per_channel, *(x.new_empty(x.shape[:2], dtype=dtype) for _ in range(2))


def _bcn_backward_fake(dy: Tensor, x: Tensor, out: Tensor | None, *flat: Any) -> tuple[Tensor, ...]:
    dx = torch.empty_like(like_input(x, x))
    half, _, affines = _kept_records(flat)
    sizes = (half.mean.numel() if affine is None else affine.numel() for affine in affines)
    return dx, x.new_empty(0) if out is None else torch.empty_like(dx), *(half.mean.new_empty(size) for size in sizes)


torch.library.register_fake('wsbcn_mm::bcn', _bcn_fake)
torch.library.register_fake('wsbcn_mm::bcn_backward', _bcn_backward_fake)


class _BatchChannelNorm(torch.autograd.Function):
    """Connects the two operators for autograd, with a fraction of the overhead of torch.library.register_autograd."""

    @staticmethod
    def forward(
        ctx: Any, options: Options, x: Tensor, residual: Tensor | None, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        _running_mean, _running_var, *affines, _rate = tensors
        out, batch_mean, batch_var, *kept = torch.ops.wsbcn_mm.bcn(x, residual, *tensors, *options)
        ctx.options, ctx.has_residual = options, residual is not None
        ctx.save_for_backward(x, out if options.relu and ctx.has_residual else None, *kept, *affines)
        ctx.mark_non_differentiable(batch_mean, batch_var)
        ctx.set_materialize_grads(False)
        return out, batch_mean, batch_var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = gradients[0]
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, out, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            half, _, affines = _kept_records(kept)
            dx, dresidual, *daffines = _differentiable_backward(dy, x, out, half, affines, ctx.options)
        else:
            dx, dresidual, *daffines = torch.ops.wsbcn_mm.bcn_backward(dy, x, out, *kept, *ctx.options)
            daffines = [None if a is None else da.to(a.dtype) for a, da in zip(kept[4:], daffines, strict=True)]
        if not ctx.has_residual:
            dresidual = None
        elif out is None:
            dresidual = dy
        return None, dx, dresidual, None, None, *daffines, None


def _differentiable_backward(
    dy: Tensor, x: Tensor, out: Tensor | None, half: ChannelStatistics, affines: Affines, options: Options
) -> tuple[Tensor | None, ...]:
    """The gradients of the readable form, with a graph for second derivatives."""
    with torch.enable_grad():
        mean, var = moments(x) if options.statistics == 'batch' else half
        normalized = channel_half(
            batch_half(x, mean, var, affines.weight, affines.bias, options.eps),
            options.num_groups,
            affines.group_weight,
            affines.group_bias,
            options.eps,
        )
    dz = dy
    if options.relu:
        dz = dy * ((normalized if out is None else out) > 0)
    wanted = {i: t for i, t in enumerate([x, *affines]) if t is not None and t.requires_grad}
    if not wanted:  # only the residual requires a gradient
        return None, dz, None, None, None, None
    found = torch.autograd.grad(normalized, list(wanted.values()), dz.to(normalized.dtype), create_graph=True)
    gradients = dict(zip(wanted, found, strict=True))
    return gradients.get(0), dz, *(gradients.get(i) for i in range(1, 5))
