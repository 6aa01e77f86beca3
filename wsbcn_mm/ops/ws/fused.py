"""Weight Standardization in one pass over the weight each way; autograd would take eight.

With a filter w of I weights, c = w - mean(w), n = |c| and the divisor s(n) of its variant:

    forward     w_hat = c / s
    backward    dw    = (g - mean(g)) / s - w_hat * sum(g * w_hat) * s'(n) / n

The Jacobian is symmetric, so forward-mode differentiation is the same map.

A filter is a row here: (O, I), O output channels, I the fan-in. `weight_standardization.py` has the readable reference
and chooses between the two. `triton.py` has the kernels for GPUs.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


class Divisor(NamedTuple):
    """The divisor of a centred filter, as a function of its norm n.

    s(n) = sqrt(n^2 / degrees + eps) if `eps_inside`, else n / sqrt(degrees) + eps.
    """

    degrees: float
    eps: float
    eps_inside: bool

    def times(self, factor: float) -> 'Divisor':
        """The divisor that is `factor` times as large for every norm."""
        eps = self.eps * (factor**2 if self.eps_inside else factor)
        return Divisor(self.degrees / factor**2, eps, self.eps_inside)

    def of(self, norm: Tensor) -> Tensor:
        """s(n)."""
        if self.eps_inside:
            return norm.square().mul(1 / self.degrees).add(self.eps).sqrt()
        return norm.mul(1 / math.sqrt(self.degrees)).add(self.eps)

    def slope(self, norm: Tensor, std: Tensor) -> Tensor:
        """s'(n) / n, given std = s(n); infinite for a constant filter with eps outside the root."""
        return std.mul(self.degrees).reciprocal() if self.eps_inside else norm.mul(math.sqrt(self.degrees)).reciprocal()


class Rows:
    """The filters of a weight as rows of a matrix, in memory order.

    Args:
        weight: (O, I/groups, *k), or (I, O/groups, *k) if `transposed`.
        groups: Groups of a transposed convolution, whose first axis joins them.
        transposed: Whether output channels are on axis 1.
    """

    def __init__(self, weight: Tensor, groups: int, transposed: bool) -> None:
        self.shape = weight.shape
        self.split = (groups, weight.shape[0] // groups) if transposed else weight.shape[:1]
        self.in_order = weight.is_contiguous() and not transposed
        self.count = groups * weight.shape[1] if transposed else weight.shape[0]
        self.strides = weight.stride()

    @cached_property
    def axes(self) -> list[int]:
        """Axes of the weight, output channels first; if transposed, its first axis is split in (groups, I/groups)."""
        split = self.split[1:] and (self.strides[0] * self.split[1],)
        strides = (*split, *self.strides)
        first = [0, 2] if len(self.split) == 2 else [0]
        rest = [axis for axis in range(len(strides)) if axis not in first]
        return [*first, *sorted(rest, key=lambda axis: -strides[axis])]

    def of(self, weight: Tensor) -> Tensor:
        """(O, I) of a tensor with the shape of the weight: a view if possible."""
        if not self.in_order:
            weight = weight.reshape(*self.split, *self.shape[1:]).permute(self.axes)
        return weight.reshape(self.count, -1)

    def back(self, rows: Tensor) -> Tensor:
        """The inverse of `of`, with the strides of the weight if no copy is needed."""
        if self.in_order:
            return rows.view(self.shape)
        split = (*self.split, *self.shape[1:])
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return rows.view([split[axis] for axis in self.axes]).permute(inverse).reshape(self.shape)


class Standardized(NamedTuple):
    """A standardised weight outside any graph, and what its backward needs besides the raw weight."""

    weight: Tensor
    """Of the shape of the raw weight."""
    saved: tuple[Tensor, ...]
    rows: Rows
    divisor: Divisor


def is_supported(weight: Tensor) -> bool:
    """Whether `weight` is an ordinary tensor, or a fake one on CPU, in ordinary eager execution.

    Everything else (other subclasses, torch.compile, export, tracing, torch.func, other devices) takes the reference,
    which those tools can read and fuse themselves. In a memory plan fake tensors stand for ordinary ones; GPU kernels
    do not accept them.
    """
    devices = {Tensor: ('cpu', 'cuda'), nn.Parameter: ('cpu', 'cuda'), FakeTensor: ('cpu',)}
    return (
        weight.device.type in devices.get(type(weight), ())
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


@torch.no_grad()
def standardize(
    weight: Tensor, divisor: Divisor, dtype: torch.dtype, *, groups: int = 1, transposed: bool = False
) -> Standardized:
    """The forward pass, outside the graph; `connect` adds its result to the graph.

    Args:
        weight: (O, I/groups, *k), or (I, O/groups, *k) if `transposed`.
        divisor: Of the formula, for the fan-in of this weight.
        dtype: Of the result; statistics are in float32 or better.
        groups: Groups of the convolution.
        transposed: Whether output channels are on axis 1.
    """
    rows = Rows(weight, groups, transposed)
    forward = triton_kernels().standardize_rows if runs_on_triton(weight) else standardize_rows
    out, saved = forward(rows.of(weight), divisor, dtype)
    return Standardized(rows.back(out), saved, rows, divisor)


def connect(weight: Tensor, standardized: Standardized) -> Tensor:
    """A new view of the standardised weight, through which gradients flow to `weight`.

    Args:
        weight: The raw weight, with the values from which `standardized` was computed.
        standardized: From `standardize`; it may be connected any number of times.
    """
    return _Connect.apply(weight, standardized)


class _Connect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, standardized: Standardized) -> Tensor:
        out, saved, ctx.rows, ctx.divisor = standardized
        ctx.save_for_backward(weight, *saved)
        ctx.save_for_forward(weight)
        ctx.dtype = out.dtype
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weight, *saved = ctx.saved_tensors
        rows, grad_rows = ctx.rows.of(weight), ctx.rows.of(grad)
        if torch.is_grad_enabled():
            pulled = pull_back_differentiably(grad_rows, rows, ctx.divisor)
        else:
            backward = triton_kernels().pull_back_rows if runs_on_triton(weight) else pull_back_rows
            pulled = backward(grad_rows, rows, saved, ctx.divisor)
        return ctx.rows.back(pulled), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (weight,) = ctx.saved_tensors
        pushed = pull_back_differentiably(ctx.rows.of(tangent), ctx.rows.of(weight), ctx.divisor)
        return ctx.rows.back(pushed).to(ctx.dtype)


def runs_on_triton(weight: Tensor) -> bool:
    """Whether the Triton kernels support this weight: on a GPU, not float64."""
    return weight.is_cuda and weight.dtype != torch.float64 and find_spec('triton') is not None


def triton_kernels() -> Any:
    """The module of Triton kernels, imported on first use: only GPU machines need Triton."""
    from . import triton

    return triton


def standardize_rows(rows: Tensor, divisor: Divisor, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Standardise each row of (O, I).

    Returns:
        The rows in `dtype`, and what `pull_back_rows` needs: the rows in float32 or better, and two numbers per row.
    """
    w = rows.to(torch.promote_types(rows.dtype, torch.float32))
    w_hat = w - w.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(w_hat, dim=1, keepdim=True)
    std = divisor.of(norm)
    w_hat.div_(std)
    # The bound keeps r^3 finite for a constant filter, where w_hat is 0 and any finite r is correct.
    r = divisor.slope(norm, std).mul_(std).mul_(rows.shape[1]).clamp_(max=1e24).sqrt_()
    return w_hat.to(dtype), (w_hat, r, (r * std).reciprocal_())


def pull_back_rows(grad: Tensor, rows: Tensor, saved: Sequence[Tensor], divisor: Divisor) -> Tensor:
    """The gradient of the raw rows, (O, I) in their dtype, by the fused backward of ATen's group normalisation.

    For rows x of mean 0 that op gives  gamma * r * (g - mean(g)) - gamma * r^3 * x * mean(g * x).  With x = w_hat,
    r^2 = I * s * s'(n) / n and gamma = 1 / (r * s) that is the formula above.
    """
    w_hat, r, gamma = saved
    count, fan_in = w_hat.shape
    grad = grad.to(w_hat.dtype).contiguous()
    r = r.view(1, count)
    pulled, _, _ = torch.ops.aten.native_group_norm_backward(
        grad, w_hat, torch.zeros_like(r), r, gamma.view(count), 1, count, fan_in, count, [True, False, False]
    )
    return pulled.view(count, fan_in).to(rows.dtype)


def pull_back_differentiably(grad: Tensor, rows: Tensor, divisor: Divisor) -> Tensor:
    """`pull_back_rows` in operations that autograd can differentiate, for higher derivatives."""
    w = rows.to(torch.promote_types(rows.dtype, torch.float32))
    centred = w - w.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    std = divisor.of(norm)
    slope = divisor.slope(norm.masked_fill(norm == 0, math.inf), std)
    grad = grad.to(w.dtype)
    along = (grad * centred).sum(1, keepdim=True)
    pulled = (grad - grad.mean(1, keepdim=True)) / std - centred * along * slope / std.square()
    return pulled.to(rows.dtype)
