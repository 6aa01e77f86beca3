"""BCN as one operator of torch, forward and backward each one reduction and one map over the data.

    torch.ops.wsbcn_mm.bcn            output, and the O(N*C) numbers that backward and the running statistics need
    torch.ops.wsbcn_mm.bcn_backward   every gradient

The device of the input chooses the passes: `c` or `aten` on CPU, `triton` on CUDA; `algebra` is the
mathematics of all. As registered operators they are opaque to torch.compile, take part in FakeTensor propagation, and
leave autocast alone: the output has the input's dtype. Backward keeps x and O(N*C) numbers, and makes ReLU's mask again
from them; with a residual it keeps the output too, which the next layer keeps as its input anyway.
"""

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..memory_format import in_layout_of, like_input
from . import aten, c
from .algebra import Affines, Half, Moments, Options
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
    """Whether the operator takes x; exported and traced graphs should hold torch's own operators instead."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    return x.numel() > 0 and x.dtype in _DTYPES.get(x.device.type, ())


def one_pass_batch_channel_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group_weight: Tensor | None,
    group_bias: Tensor | None,
    *,
    num_groups: int,
    rate: float | Tensor,
    statistics: str,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `wsbcn_mm.ops.bcn.batch_channel_norm.normalize_and_measure`, which has the arguments."""
    if not isinstance(rate, Tensor):
        rate = torch.full((), rate, dtype=running_mean.dtype, device=x.device)
    out, mean, var = _BatchChannelNorm.apply(
        x,
        residual,
        running_mean,
        running_var,
        weight,
        bias,
        group_weight,
        group_bias,
        rate,
        num_groups,
        statistics,
        relu,
        eps,
    )
    return out, mean.to(running_mean.dtype), var.to(running_var.dtype)


def _passes(x: Tensor) -> ModuleType:
    if x.device.type == 'cuda':
        return importlib.import_module('.triton', __package__)  # triton is there on machines that need it
    return c if c.takes(x) else aten


@torch.library.impl('wsbcn_mm::bcn', _DISPATCH_KEYS)
def _bcn(
    x: Tensor,
    residual: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group_weight: Tensor | None,
    group_bias: Tensor | None,
    rate: Tensor,
    *options: Any,
) -> tuple[Tensor, ...]:
    x, chosen = like_input(x, x), Options(*options)
    out, half, batch, of_x = _passes(x).forward(
        x,
        residual,
        Half(running_mean, running_var),
        Affines(weight, bias, group_weight, group_bias),
        rate,
        chosen,
    )
    if chosen.statistics != 'estimated':  # an operator's outputs share no memory with each other or with its inputs
        half, batch = (Half(*(t.clone() for t in pair)) for pair in (half, batch))
    return out, *batch, *half, *of_x


@torch.library.impl('wsbcn_mm::bcn_backward', _DISPATCH_KEYS)
def _bcn_backward(
    dy: Tensor,
    x: Tensor,
    out: Tensor | None,
    half_mean: Tensor,
    half_var: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group_weight: Tensor | None,
    group_bias: Tensor | None,
    *options: Any,
) -> tuple[Tensor, ...]:
    x = like_input(x, x)
    affines = Affines(weight, bias, group_weight, group_bias)
    dx, dresidual, daffines = _passes(x).backward(
        in_layout_of(dy, x),
        x,
        None if out is None else in_layout_of(out, x),
        Half(half_mean, half_var),
        Moments(mean, var),
        affines,
        Options(*options),
    )
    if out is None:
        dresidual = dx.new_empty(0)
    return dx, dresidual, *(_shaped_as(a, d, half_mean) for a, d in zip(affines, daffines, strict=True))


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


def _bcn_backward_fake(
    dy: Tensor,
    x: Tensor,
    out: Tensor | None,
    half_mean: Tensor,
    half_var: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    group_weight: Tensor | None,
    group_bias: Tensor | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    dx = torch.empty_like(like_input(x, x))
    sizes = (
        half_mean.numel() if affine is None else affine.numel() for affine in (weight, bias, group_weight, group_bias)
    )
    return dx, x.new_empty(0) if out is None else torch.empty_like(dx), *(half_mean.new_empty(size) for size in sizes)


torch.library.register_fake('wsbcn_mm::bcn', _bcn_fake)
torch.library.register_fake('wsbcn_mm::bcn_backward', _bcn_backward_fake)


class _BatchChannelNorm(torch.autograd.Function):
    """Ties the two operators together; an own Function costs a fraction of what torch.library's registration does."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        group_weight: Tensor | None,
        group_bias: Tensor | None,
        rate: Tensor,
        *options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        affines = weight, bias, group_weight, group_bias
        out, batch_mean, batch_var, *statistics = torch.ops.wsbcn_mm.bcn(
            x, residual, running_mean, running_var, *affines, rate, *options
        )
        ctx.options = Options(*options)
        ctx.has_residual = residual is not None
        ctx.save_for_backward(x, out if ctx.options.relu and ctx.has_residual else None, *statistics, *affines)
        ctx.mark_non_differentiable(batch_mean, batch_var)
        ctx.set_materialize_grads(False)
        return out, batch_mean, batch_var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = gradients[0]
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, out, half_mean, half_var, mean, var, *affines = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx, dresidual, *daffines = _differentiable_backward(
                dy, x, out, Half(half_mean, half_var), Affines(*affines), ctx.options
            )
        else:
            dx, dresidual, *daffines = torch.ops.wsbcn_mm.bcn_backward(
                dy, x, out, half_mean, half_var, mean, var, *affines, *ctx.options
            )
            daffines = [None if a is None else da.to(a.dtype) for a, da in zip(affines, daffines, strict=True)]
        if not ctx.has_residual:
            dresidual = None
        elif out is None:
            dresidual = dy
        return dx, dresidual, None, None, *daffines, None, *(None for _ in ctx.options)


def _differentiable_backward(
    dy: Tensor,
    x: Tensor,
    out: Tensor | None,
    half: Half,
    affines: Affines,
    options: Options,
) -> tuple[Tensor | None, ...]:
    """The gradients as a graph of their own, for second derivatives: those of the readable form."""
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
    if not wanted:  # only the residual asks for gradients
        return None, dz, None, None, None, None
    found = torch.autograd.grad(normalized, list(wanted.values()), dz.to(normalized.dtype), create_graph=True)
    gradients = dict(zip(wanted, found, strict=True))
    return gradients.get(0), dz, *(gradients.get(i) for i in range(1, 5))
