"""What BCN does to the moments of its input: the O(N*C) part of the one-pass operator, forward and backward.

Both halves of BCN are affine in x once the statistics are known, and the statistics of the second half follow from
those of the input. With m and v the mean and biased variance of x over the L positions of one (sample, channel):

    batch half     x' = a (x - e) + bias            a = weight k, k = 1 / sqrt(d + eps); e, d: what it normalises with
    channel half   u  = a (m - e) + bias            mean of x' over the positions
                   mu, var                          group means of u and of a^2 v + (u - mu)^2
    together       y  = scale (x - m) + shift       scale = a r gamma, shift = r gamma (u - mu) + beta,
                                                    r = 1 / sqrt(var + eps)

The forward is therefore one reduction (m, v) and one map. The backward is one reduction (sums of dy and of dy (x - m))
and one map, dx = p dy + q (x - m) + s. Tensor names end in their axes: N samples, C channels, G groups, K channels of a
group. All arithmetic is in float32 or better.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Mean and biased variance of every (sample, channel) over its positions, each (N, C)."""

    mean: Tensor
    var: Tensor


class ChannelStatistics(NamedTuple):
    """Mean and variance of every channel, each (C,): running, measured on a batch, or used by the batch half."""

    mean: Tensor
    var: Tensor


class Affines(NamedTuple):
    """The learned scales and shifts: weight and bias (C,), group_weight and group_bias (G,) or (C,)."""

    weight: Tensor | None
    bias: Tensor | None
    group_weight: Tensor | None
    group_bias: Tensor | None


class Options(NamedTuple):
    """What a call of BCN chooses; `normalize_and_measure` in `batch_channel_norm.py` documents `statistics`."""

    num_groups: int
    statistics: str
    relu: bool
    eps: float


class Gradients(NamedTuple):
    """Coefficients of dx = p dy + q (x - m) + s, each (N, C), and the gradients of the affines."""

    p: Tensor
    q: Tensor
    s: Tensor
    affines: Affines


def batch_half_statistics(
    moments: Moments, running: ChannelStatistics, rate: Tensor, statistics: str
) -> tuple[ChannelStatistics, ChannelStatistics]:
    """What the batch half normalises with, and what the batch measures.

    Args:
        moments: Of x.
        running: The running statistics.
        rate: Weight of this batch in the running statistics, 0-d.
        statistics: `estimated`: the running statistics moved towards this batch, whose second moment is taken around
            the OLD running mean (Algorithm 1, steps 1-4). `batch`: mean and biased variance of this batch. `frozen`:
            the running statistics as they are, for both results.
    """
    m_NC, v_NC = moments
    estimates = ChannelStatistics(*(t.to(m_NC.dtype) for t in running))
    if statistics == 'frozen':
        return estimates, estimates
    mean_C = _mean_over_samples(m_NC)
    drift_NC = m_NC - (estimates.mean if statistics == 'estimated' else mean_C)
    batch = ChannelStatistics(mean_C, _mean_over_samples(torch.addcmul(v_NC, drift_NC, drift_NC)))
    if statistics == 'batch':
        return batch, batch
    rate = rate.to(m_NC.dtype)
    moved = (torch.lerp(old, new, rate) for old, new in zip(estimates, batch, strict=True))
    return ChannelStatistics(*moved), batch


def output_map(moments: Moments, half: ChannelStatistics, affines: Affines, options: Options) -> tuple[Tensor, Tensor]:
    """(scale, shift) of y = scale (x - m) + shift, each (N, C)."""
    _, a_GK, _, r_NG1, offset_NGK = _apply_to_moments(moments, half, affines, options)
    gamma, beta = (_by_group(affine, options.num_groups, a_GK.dtype) for affine in affines[2:])
    r_gamma = r_NG1 if gamma is None else r_NG1 * gamma
    shift = r_gamma * offset_NGK if beta is None else torch.addcmul(beta, r_gamma, offset_NGK)
    return (r_gamma * a_GK).flatten(1), shift.flatten(1)


def gradients(
    moments: Moments,
    half: ChannelStatistics,
    affines: Affines,
    dy_sum: Tensor,
    dyx_sum: Tensor,
    positions: int,
    options: Options,
) -> Gradients:
    """Every gradient, from the two sums over positions.

    Args:
        moments: Of x.
        half: What the batch half normalised with. `batch` statistics carry gradient, the others do not.
        affines: Of the forward.
        dy_sum: Sum of dy, (N, C).
        dyx_sum: Sum of dy (x - m), (N, C).
        positions: L.
        options: Of the forward.
    """
    num_groups = options.num_groups
    k, a, centred, r, offset = _apply_to_moments(moments, half, affines, options)
    v, dy, dyx = (t.unflatten(1, (num_groups, -1)) for t in (moments.var, dy_sum, dyx_sum))
    gamma = _by_group(affines.group_weight, num_groups, a.dtype)
    ra, z = r * a, r * offset

    # The channel half, y = gamma z + beta: dx' = r (gamma dy - c1 - c2 z).
    dgamma = torch.addcmul(z * dy, ra, dyx)
    gamma_dy, gamma_dyx, gamma_dgamma = (t if gamma is None else t * gamma for t in (dy, dyx, dgamma))
    values = positions * a.shape[1]
    c1, c2 = (t.sum(-1, keepdim=True) / values for t in (gamma_dy, gamma_dgamma))
    level = torch.addcmul(c1, c2, z)
    dhalf = r * torch.sub(gamma_dy, level, alpha=positions)  # dx' summed over positions
    dhalf_x = r * torch.sub(gamma_dyx, c2 * ra * v, alpha=positions)  # dx' (x - m) summed over positions

    # The batch half, x' = weight k (x - e) + bias.
    dweight_over_k = torch.addcmul(dhalf_x, centred, dhalf).sum(0)
    dbias = dhalf.sum(0)
    p = ra.expand_as(v) if gamma is None else ra * gamma
    q, s = -ra * ra * c2, -ra * level
    if options.statistics == 'batch':
        weight = _by_group(affines.weight, num_groups, a.dtype)
        dk = dweight_over_k if weight is None else dweight_over_k * weight
        count = positions * v.shape[0]
        dvar = dk * k.pow(3) / -count  # 2 / count of dk / dd = -k^3 / 2
        q = q + dvar
        s = s + dvar * centred - a * dbias / count
    per_channel = (k * dweight_over_k, dbias, dgamma.sum(0), dy.sum(0))
    return Gradients(p.flatten(1), q.flatten(1), s.flatten(1), Affines(*(t.flatten() for t in per_channel)))


class _Applied(NamedTuple):
    """Both halves of BCN applied to the moments, with the names of the module's docstring."""

    k_GK: Tensor
    a_GK: Tensor
    centred_NGK: Tensor
    """m - e"""
    r_NG1: Tensor
    offset_NGK: Tensor
    """u - mu"""


def _apply_to_moments(moments: Moments, half: ChannelStatistics, affines: Affines, options: Options) -> _Applied:
    num_groups, eps = options.num_groups, options.eps
    m_NGK, v_NGK = (t.unflatten(1, (num_groups, -1)) for t in moments)
    e_GK, d_GK = (t.to(m_NGK.dtype).view(num_groups, -1) for t in half)
    weight_GK, bias_GK = (_by_group(t, num_groups, m_NGK.dtype) for t in affines[:2])
    k_GK = (d_GK + eps).rsqrt_()
    a_GK = k_GK if weight_GK is None else k_GK * weight_GK
    centred_NGK = m_NGK - e_GK
    u_NGK = centred_NGK * a_GK if bias_GK is None else torch.addcmul(bias_GK, centred_NGK, a_GK)
    offset_NGK = u_NGK - u_NGK.mean(-1, keepdim=True)
    spread_NGK = torch.addcmul(offset_NGK * offset_NGK, a_GK * a_GK, v_NGK)
    r_NG1 = spread_NGK.mean(-1, keepdim=True).add_(eps).rsqrt_()
    return _Applied(k_GK, a_GK, centred_NGK, r_NG1, offset_NGK)


def _by_group(per_channel: Tensor | None, num_groups: int, dtype: torch.dtype) -> Tensor | None:
    """(C,) as (G, K), (G,) as (G, 1)."""
    return None if per_channel is None else per_channel.to(dtype).view(num_groups, -1)


def _mean_over_samples(t_NC: Tensor) -> Tensor:
    return t_NC[0].clone() if t_NC.shape[0] == 1 else t_NC.mean(0)
