"""The readable form of Batch-Channel Normalization, one tensor operation per step of the algorithm.

The one-pass operator is tested against it. It also runs where that operator does not: on other devices, in exported and
traced graphs, over several ranks, for empty batches and for second derivatives. Source: arXiv 1903.10520 v2,
Algorithm 1; README (`EstBN`, `BCNorm`) of joe-siyuan-qiao/Batch-Channel-Normalization.
"""

import torch
from torch import Tensor

from ..batch_norm import moments_of_all_ranks
from ..memory_format import like_input
from .algebra import Affines, ChannelStatistics, Options


def batch_channel_norm_steps(
    x: Tensor,
    residual: Tensor | None,
    running: ChannelStatistics,
    affines: Affines,
    rate: float | Tensor,
    options: Options,
) -> tuple[Tensor, ChannelStatistics]:
    """As `normalize_and_measure` in `batch_channel_norm.py`, which documents the arguments."""
    half, measured = batch_half_statistics(x, running, rate, options.statistics)
    out = batch_half(x, half.mean, half.var, affines.weight, affines.bias, options.eps)
    out = channel_half(out, options.num_groups, affines.group_weight, affines.group_bias, options.eps)
    if residual is not None:
        out = out + residual
    return like_input(out.relu() if options.relu else out, x), measured


def batch_half_statistics(
    x: Tensor, running: ChannelStatistics, rate: float | Tensor, statistics: str
) -> tuple[ChannelStatistics, ChannelStatistics]:
    """What the batch half normalises with, and what the running statistics move towards (Algorithm 1, steps 1-4)."""
    if statistics == 'frozen' or (statistics == 'estimated' and x.numel() == 0):
        estimates = ChannelStatistics(running.mean.clone(), running.var.clone())
        return estimates, estimates
    dtype = running.mean.dtype
    if statistics == 'estimated':
        with torch.no_grad():
            mean, second_moment = (moment.to(dtype) for moment in moments(x, around=running.mean))
        moved = ChannelStatistics(torch.lerp(running.mean, mean, rate), torch.lerp(running.var, second_moment, rate))
        return moved, ChannelStatistics(mean, second_moment)
    if statistics == 'sync':
        mean, var, count = moments_of_all_ranks(x)
        unbiased = var * (count / (count - 1).clamp_min(1))
    else:
        mean, var = moments(x)
        values = x.numel() // x.shape[1]
        unbiased = var * (values / (values - 1))
    measured = ChannelStatistics(mean.detach().to(dtype), unbiased.detach().to(dtype))
    return ChannelStatistics(mean, var), measured


def moments(x: Tensor, around: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean of every channel, and its biased second moment around the mean or around `around`.

    Args:
        x: (N, C, *), not empty.
        around: (C,) or None.

    Returns:
        Mean (C,) and second moment (C,), in float32 or better.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    over = [0, *range(2, x.ndim)]
    mean = x.mean(over)
    centre = mean if around is None else around
    return mean, (x - centre.view(_per_channel(x))).square().mean(over)


def batch_half(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Affine map per channel, (N, C, *) -> (N, C, *) in float32 or better (Algorithm 1, step 5)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(var.to(x.dtype) + eps)
    if weight is not None:
        scale = scale * weight
    centred = x - mean.view(_per_channel(x))
    if bias is None:
        return centred * scale.view(_per_channel(x))
    return torch.addcmul(bias.view(_per_channel(x)), centred, scale.view(_per_channel(x)))


def channel_half(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Group normalisation with live statistics (Algorithm 1, step 6).

    Args:
        x: (N, C, *) in float32 or better.
        num_groups: G, a divisor of C.
        weight: (G,) as the authors have it, or (C,) as in GroupNorm.
        bias: As `weight`.
        eps: Added to the variance.
    """
    per_group = x.shape[1] // num_groups
    if weight is not None and weight.numel() == num_groups:
        weight = weight[:, None].expand(-1, per_group).flatten()
    if bias is not None and bias.numel() == num_groups:
        bias = bias[:, None].expand(-1, per_group).flatten()
    # Not F.group_norm, which rejects a group of one value if the batch has a single sample. Here it becomes 0.
    return torch.group_norm(
        x, num_groups, None if weight is None else weight.to(x.dtype), None if bias is None else bias.to(x.dtype), eps
    )


def _per_channel(x: Tensor) -> tuple[int, ...]:
    return (-1,) + (1,) * (x.ndim - 2)
