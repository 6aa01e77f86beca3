"""Batch-Channel Normalization: a batch normalisation per channel, then a group normalisation per sample.

    batch half     x' = weight * (x - mean_c) / sqrt(var_c + eps) + bias               per channel c
    channel half   y  = group_weight * (x' - mean_ng) / sqrt(var_ng + eps) + group_bias  per sample n and group g

In micro-batch BCN, mean_c and var_c are running estimates that carry no gradient; mean_ng and var_ng are live and
differentiated. Source: arXiv 1903.10520 v2, Algorithm 1; README (`EstBN`, `BCNorm`) of
joe-siyuan-qiao/Batch-Channel-Normalization.
"""

import torch
from torch import Tensor

from .memory_format import like_input


def moments_around(x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of every channel, and its second moment around `centre`.

    Args:
        x: (N, C, *), not empty.
        centre: (C,).

    Returns:
        Mean (C,) and biased second moment (C,), in float32 or better.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    over = [0, *range(2, x.ndim)]
    return x.mean(over), (x - centre.view((-1,) + (1,) * (x.ndim - 2))).square().mean(over)


def normalize_with_estimates(
    x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Affine map per channel, linear in x: (N, C, *) -> (N, C, *) in float32 or better (Algorithm 1, step 5)."""
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # The buffers change in place at the next forward, which may come before this one's backward.
    mean, scale = running_mean.clone(), torch.rsqrt(running_var.to(x.dtype) + eps)
    if weight is not None:
        scale = scale * weight
    centred = x - mean.view(per_channel)
    if bias is None:
        return centred * scale.view(per_channel)
    return torch.addcmul(bias.view(per_channel), centred, scale.view(per_channel))


def channel_norm(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
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
    # Not F.group_norm: it refuses a group of one value if the batch has a single sample. Here such a group becomes 0.
    return torch.group_norm(
        x, num_groups, None if weight is None else weight.to(x.dtype), None if bias is None else bias.to(x.dtype), eps
    )


def normalize_and_measure(
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
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Micro-batch BCN with the estimates moved by `rate` towards this batch, and what moves them; no buffer changes.

    The second moment is taken around the OLD running mean, so that a drift of the batch mean counts as variance
    (Algorithm 1, steps 1-4). No gradient flows through either moment. An empty batch says nothing: its moments are the
    estimates themselves.

    Args:
        x: (N, C, *).
        running_mean: (C,), float32 or better.
        running_var: (C,), float32 or better.
        weight, bias, group_weight, group_bias, num_groups, eps: As in `batch_channel_norm`.
        rate: Weight of this batch in [0, 1], a float or a 0-d tensor.

    Returns:
        Output as of `batch_channel_norm`; mean of every channel (C,); its second moment (C,), in the buffers' dtype.
    """
    check_groups(x, num_groups)
    if x.numel() == 0:
        mean, second_moment = running_mean.clone(), running_var.clone()
    else:
        with torch.no_grad():
            mean, second_moment = (m.to(running_mean.dtype) for m in moments_around(x, running_mean))
    moved_mean, moved_var = torch.lerp(running_mean, mean, rate), torch.lerp(running_var, second_moment, rate)
    out = normalize_with_estimates(x, moved_mean, moved_var, weight, bias, eps)
    return like_input(channel_norm(out, num_groups, group_weight, group_bias, eps), x), mean, second_moment


def batch_channel_norm(
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
    training: bool,
    eps: float = 1e-5,
) -> Tensor:
    """Micro-batch BCN with estimated statistics.

    In training the estimates move first and the batch is normalised with the UPDATED ones; no gradient flows through
    them. Evaluation is the same map without the update, so both agree for equal buffers.

    Args:
        x: (N, C, *) with any number of trailing axes; N and the positions may be 1, N may be 0.
        running_mean: (C,); changed in training.
        running_var: (C,); changed in training.
        weight: (C,) scale of the batch half, or None.
        bias: (C,) shift of the batch half, or None.
        group_weight: (G,) or (C,) scale of the channel half, or None.
        group_bias: (G,) or (C,) shift of the channel half, or None.
        num_groups: G.
        rate: Weight of this batch in the estimates; 0 freezes them.
        training: Whether to update the estimates.
        eps: Added to both variances.

    Returns:
        (N, C, *) with the dtype and memory format of `x`.

    Raises:
        ValueError: If x has fewer than 2 axes or `num_groups` does not divide C.
    """
    if not training:
        check_groups(x, num_groups)
        out = normalize_with_estimates(x, running_mean, running_var, weight, bias, eps)
        return like_input(channel_norm(out, num_groups, group_weight, group_bias, eps), x)
    out, mean, second_moment = normalize_and_measure(
        x, running_mean, running_var, weight, bias, group_weight, group_bias, num_groups=num_groups, rate=rate, eps=eps
    )
    with torch.no_grad():
        running_mean.lerp_(mean, rate)
        running_var.lerp_(second_moment, rate)
    return out


def check_groups(x: Tensor, num_groups: int) -> None:
    """Raise ValueError unless x is (N, C, *) with C divisible by `num_groups`."""
    if x.ndim < 2:
        raise ValueError(f'input of shape {tuple(x.shape)} has no channel axis: (N, C, *) is expected')
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f'num_groups={num_groups} does not divide the {x.shape[1]} channels of the input')
