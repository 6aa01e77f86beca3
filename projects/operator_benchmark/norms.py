"""Norm + ReLU, forward and backward: the sides, their tensors, and the gate that BCN must pass before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wsbcn_mm.ops import batch_channel_norm
from wsbcn_mm.ops.bcn.algebra import Affines, ChannelStatistics, Options
from wsbcn_mm.ops.bcn.batch_channel_norm import normalize_and_measure, update_running_statistics

SHAPES: tuple[tuple[int, ...], ...] = (
    (1, 256, 128, 128),
    (2, 512, 64, 64),
    (1, 64, 256, 256),
    (1, 2048, 33, 33),
    (1, 64, 16, 56, 56),
    (1, 256, 8, 14, 14),
)
LARGE_SHAPES: tuple[tuple[int, ...], ...] = ((4, 256, 256, 256), (2, 64, 32, 128, 128))
"""At least 64 MiB, also in bfloat16, so that a GPU's bandwidth dominates its launches."""
QUICK_SHAPES: tuple[tuple[int, ...], ...] = ((1, 64, 9, 7), (2, 64, 3, 5, 4))
GROUPS, RATE, EPS = 32, 0.1, 1e-5
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest relative error that passes the gate, in the 2-norm of a whole tensor."""
MARGINS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 1e-2}
"""Outputs closer to ReLU's kink get no gradient in the gate, because rounding decides on which side they are."""


@dataclass(frozen=True)
class Problem:
    """The tensors of one case, the same for every side.

    Attributes:
        x: (N, C, *), requires grad.
        grad: (N, C, *), the gradient that arrives at the ReLU's output.
        running_mean, running_var: (C,), updated by the sides.
        weight, bias: (C,), require grad.
        group_weight, group_bias: (GROUPS,), require grad.
    """

    x: Tensor
    grad: Tensor
    running_mean: Tensor
    running_var: Tensor
    weight: Tensor
    bias: Tensor
    group_weight: Tensor
    group_bias: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.x, self.weight, self.bias, self.group_weight, self.group_bias


Norm = Callable[[Problem], Tensor]


def draw(shape: tuple[int, ...], dtype: torch.dtype, layout: str, device: torch.device, seed: int = 0) -> Problem:
    """Draw random tensors whose channels differ in mean and scale, like those of a convolution's output.

    Args:
        shape: Shape of x, with a multiple of `GROUPS` channels.
        dtype: Dtype of x and grad; the others are float32.
        layout: Layout of x and grad, 'contiguous' or 'channels_last'.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    C = shape[1]
    per_channel = (1, C) + (1,) * (len(shape) - 2)
    memory_format = FORMATS[len(shape)] if layout == 'channels_last' else torch.contiguous_format
    x = normal(*shape) * (1 + normal(*per_channel).abs()) + normal(*per_channel)
    x, grad = (t.to(device, dtype).contiguous(memory_format=memory_format) for t in (x, normal(*shape)))
    running_mean, running_var = 0.5 * normal(C), 1 + normal(C).abs()
    affines = 1 + 0.2 * normal(C), 0.2 * normal(C), 1 + 0.2 * normal(GROUPS), 0.2 * normal(GROUPS)
    return Problem(
        x.requires_grad_(),
        grad,
        running_mean.to(device),
        running_var.to(device),
        *(affine.to(device).requires_grad_() for affine in affines),
    )


def bcn(p: Problem) -> Tensor:
    """BCN of this library, with estimated statistics."""
    return batch_channel_norm(
        p.x,
        p.running_mean,
        p.running_var,
        p.weight,
        p.bias,
        p.group_weight,
        p.group_bias,
        num_groups=GROUPS,
        rate=RATE,
        training=True,
        relu=True,
        eps=EPS,
    )


def bcn_batch(p: Problem) -> Tensor:
    """BCN of this library, with batch statistics; the running variance is unbiased, as in BatchNorm."""
    running = ChannelStatistics(p.running_mean, p.running_var)
    affines = Affines(p.weight, p.bias, p.group_weight, p.group_bias)
    options = Options(GROUPS, 'batch', relu=True, eps=EPS)
    out, measured = normalize_and_measure(p.x, None, running, affines, RATE, options)
    update_running_statistics(running, measured, RATE)
    return out


def bn(p: Problem) -> Tensor:
    return F.relu_(F.batch_norm(p.x, p.running_mean, p.running_var, p.weight, p.bias, True, RATE, EPS))


def gn(p: Problem) -> Tensor:
    dtype = p.x.dtype
    return F.relu_(F.group_norm(p.x, GROUPS, p.weight.to(dtype), p.bias.to(dtype), EPS))


def plain_estimated_batch_norm(p: Problem) -> Tensor:
    """Steps 1 to 5 of Algorithm 1, with one torch operation for each operation of the text."""
    per_channel = (1, -1) + (1,) * (p.x.ndim - 2)
    over = [0, *range(2, p.x.ndim)]
    with torch.no_grad():
        mean = p.x.mean(over)
        second_moment = (p.x - p.running_mean.view(per_channel)).square().mean(over)
        p.running_mean.add_(RATE * (mean - p.running_mean))
        p.running_var.add_(RATE * (second_moment - p.running_var))
        mean, std = p.running_mean.clone(), (p.running_var + EPS).sqrt()
    normal = (p.x - mean.view(per_channel)) / std.view(per_channel)
    return normal * p.weight.view(per_channel) + p.bias.view(per_channel)


def plain_live_batch_norm(p: Problem) -> Tensor:
    """Batch half of large-batch BCN, which is BatchNorm."""
    return F.batch_norm(p.x, p.running_mean, p.running_var, p.weight, p.bias, True, RATE, EPS)


def plain_channel_half(out: Tensor, p: Problem) -> Tensor:
    """Step 6 of Algorithm 1 as in the authors' code: batch_norm over a (1, N*G, -1) view, then the groups' affine."""
    N = out.shape[0]
    normal = F.batch_norm(out.reshape(1, N * GROUPS, -1), None, None, training=True, momentum=0.0, eps=EPS)
    normal = normal.view(N, GROUPS, -1)
    return (normal * p.group_weight.view(1, -1, 1) + p.group_bias.view(1, -1, 1)).view(out.shape)


def plain(p: Problem) -> Tensor:
    """BCN with estimated statistics, before the ReLU."""
    return plain_channel_half(plain_estimated_batch_norm(p), p)


def plain_with_batch_statistics(p: Problem) -> Tensor:
    """BCN with batch statistics, before the ReLU."""
    return plain_channel_half(plain_live_batch_norm(p), p)


def bcn_plain(p: Problem) -> Tensor:
    return F.relu_(plain(p)).to(p.x.dtype)


def sides() -> dict[str, Norm]:
    """Return the sides in the order of timing. The compiled side is compiled in its first call."""
    return {
        'bn': bn,
        'gn': gn,
        'bcn': bcn,
        'bcn_batch': bcn_batch,
        'bcn_plain': bcn_plain,
        'bcn_compiled': torch.compile(bcn_plain, fullgraph=True, dynamic=False),
    }


def forward_and_backward(side: Norm, problem: Problem) -> Callable[[], object]:
    """Return one training pass of a side: the output, then the gradients of x and of the side's parameters."""
    return lambda: torch.autograd.grad(side(problem), problem.leaves, problem.grad, allow_unused=True)


def copy(problem: Problem) -> Callable[[], object]:
    """Return a copy of one activation: one read, one write."""
    target, source = torch.empty_like(problem.x), problem.x.detach()
    return lambda: target.copy_(source)


GATED: Mapping[str, tuple[Norm, Norm]] = {'bcn': (bcn, plain), 'bcn_batch': (bcn_batch, plain_with_batch_statistics)}
"""This library's sides, and what each must equal before its ReLU."""


class GateError(RuntimeError):
    """A side is wrong, so its speed is meaningless."""


def errors(side: Norm, reference: Norm, problem: Problem) -> dict[str, float]:
    """Return the relative errors of a side's output, gradients and buffers, each in the 2-norm of the whole tensor.

    Args:
        side: Norm + ReLU; works on copies of the problem's tensors.
        reference: The norm without ReLU, run in float64 on the same values.
    """
    exact = copy_of(problem, torch.float64)
    normal = reference(exact)
    clear = normal.detach().abs() > MARGINS[problem.x.dtype]
    grad = (problem.grad * clear).to(problem.x.dtype)
    mine = copy_of(problem, None)
    out = side(mine)
    found = [out, *torch.autograd.grad(out, mine.leaves, grad), mine.running_mean, mine.running_var]
    right = F.relu(normal)
    expected = [right, *torch.autograd.grad(right, exact.leaves, grad.double())]
    expected += [exact.running_mean, exact.running_var]
    names = ('out', 'dx', 'dweight', 'dbias', 'dgroup_weight', 'dgroup_bias', 'running_mean', 'running_var')
    return {
        name: float((a.double() - b).detach().norm() / b.detach().norm())
        for name, a, b in zip(names, found, expected, strict=True)
    }  # fmt: skip


def copy_of(problem: Problem, dtype: torch.dtype | None) -> Problem:
    """Copy a problem to a dtype, or in its own dtypes if None; leaves are leaves again."""
    copies = {
        name: tensor.detach()
        .to(tensor.dtype if dtype is None else dtype, copy=True)
        .requires_grad_(tensor.requires_grad)
        for name, tensor in vars(problem).items()
    }
    return replace(problem, **copies)


def gate(problem: Problem, gated: Mapping[str, tuple[Norm, Norm]] = GATED) -> float:
    """Compare this library's sides with the plain composition in float64, on the tensors that will be timed.

    Args:
        problem: The tensors.
        gated: Name -> (side, reference).

    Returns:
        The largest relative error.

    Raises:
        GateError: If an error exceeds the tolerance or is NaN. The message has all errors of the side.
    """
    tolerance = TOLERANCES[problem.x.dtype]
    largest = 0.0
    for name, (side, reference) in gated.items():
        found = errors(side, reference, problem)
        if not all(error <= tolerance for error in found.values()):
            numbers = ', '.join(f'{key} {error:.2g}' for key, error in found.items())
            raise GateError(
                f'{name} on {tuple(problem.x.shape)} {problem.x.dtype} differs from the plain composition in float64 '
                f'by more than {tolerance:g}: {numbers}'
            )
        largest = max(largest, *found.values())
    return largest
