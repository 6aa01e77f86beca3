"""The algebra between the passes of one-pass BCN, in Triton: O(N*C) numbers, one launch forward and one backward.

With m and v the mean and variance of x over the positions of a row, e and d the mean and variance that the batch half
normalises with, and group averages written < >:

    batch half     x' = a (x - e) + bias,  a = k weight,  k = 1 / sqrt(d + eps)
    channel half   u = a (m - e) + bias,  mu = <u>,  r = 1 / sqrt(<a^2 v + (u - mu)^2> + eps)
    together       y = scale (x - m) + shift,  scale = gamma r a,  shift = gamma z + beta,  z = r (u - mu)

A program handles one group of channels over all samples, so sums over samples need no atomics. Tensors in a kernel are
tiles of BLOCK_N samples by BLOCK_K channels of the group; rows beyond the group or the batch are 0.
"""

# Kernels are typed by their compiler.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .algebra import Affines, ChannelStatistics, Gradients, Moments, Options
from .triton_passes import part_length

# Numbers of each tensor that a program holds: 8 per thread, so that the backward's fifteen tensors fit in registers.
TILE = 1024

# One compiled kernel serves every shape with the same tiles.
_SIZES = ['samples', 'channels', 'positions', 'parts', 'length', 'per_group']


class Folded(NamedTuple):
    """Both halves of BCN as one affine map, with the statistics behind it. All float32; no two share memory."""

    moments: Moments
    """Of x; the mean is the centre of the map."""
    scale: Tensor
    """(N, C)"""
    shift: Tensor
    """(N, C)"""
    batch: ChannelStatistics
    """Mean of x, and its biased second moment around the running mean, or around its own with 'batch' statistics."""
    half: ChannelStatistics
    """What the batch half normalises with."""


@triton.jit
def _per_channel(ptr, group, channel, live, default, PER_GROUP: tl.constexpr):
    """Values of a parameter, or of `default` if it is None, for the channels of a group: (K,)."""
    if ptr is None:
        values = tl.where(live, default, 0.0)
    else:
        index = group + channel * 0 if PER_GROUP else channel
        values = tl.load(ptr + index, live, other=0.0).to(tl.float32)
    return values


@triton.jit
def _merge_moments(mean_ptr, var_ptr, index, live, rows, positions, parts, length, BLOCK_P: tl.constexpr):
    """Mean and variance of whole rows from those of their parts: (BLOCK_N, BLOCK_K).

    Means are merged around the mean of the first part, so that constant rows keep their value and have no variance.
    """
    mean = tl.load(mean_ptr + index, live, other=0.0)
    if BLOCK_P == 1:
        var = tl.load(var_ptr + index, live, other=0.0)
    else:
        first = mean
        for start in range(0, parts, BLOCK_P):
            part = (start + tl.arange(0, BLOCK_P))[:, None, None]
            count = tl.minimum(length, positions - part.to(tl.int64) * length) * 1.0
            here = live[None, :, :] & (part < parts)
            means = tl.load(mean_ptr + part * rows + index[None, :, :], here, other=0.0)
            mean += tl.sum(tl.where(here, count * (means - first[None, :, :]), 0.0), 0) / (positions * 1.0)
        var = tl.zeros_like(mean)
        for start in range(0, parts, BLOCK_P):
            part = (start + tl.arange(0, BLOCK_P))[:, None, None]
            count = tl.minimum(length, positions - part.to(tl.int64) * length) * 1.0
            here = live[None, :, :] & (part < parts)
            off = tl.load(mean_ptr + part * rows + index[None, :, :], here, other=0.0) - mean[None, :, :]
            variances = tl.load(var_ptr + part * rows + index[None, :, :], here, other=0.0)
            var += tl.sum(tl.where(here, count * (variances + off * off), 0.0), 0) / (positions * 1.0)
    return mean, var


@triton.jit
def _sum_parts(ptr, index, live, rows, parts, BLOCK_P: tl.constexpr):
    """Sum over the axis of parts: (BLOCK_N, BLOCK_K)."""
    total = tl.zeros(index.shape, tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = (start + tl.arange(0, BLOCK_P))[:, None, None]
        here = live[None, :, :] & (part < parts)
        total += tl.sum(tl.load(ptr + part * rows + index[None, :, :], here, other=0.0), 0)
    return total


@triton.jit
def _channel_half(mean, var, a, e, bias, live, per_group, eps):
    """u - mu, (BLOCK_N, BLOCK_K), and r, (BLOCK_N, 1)."""
    u = tl.where(live, a[None, :] * (mean - e[None, :]) + bias[None, :], 0.0)
    off = tl.where(live, u - (tl.sum(u, 1) / per_group)[:, None], 0.0)
    group_var = tl.sum(a[None, :] * a[None, :] * var + off * off, 1) / per_group
    return off, tl.rsqrt(group_var + eps)[:, None]


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
    part_mean_ptr,
    part_var_ptr,
    running_mean_ptr,
    running_var_ptr,
    weight_ptr,
    bias_ptr,
    group_weight_ptr,
    group_bias_ptr,
    rate,
    mean_ptr,
    var_ptr,
    scale_ptr,
    shift_ptr,
    batch_mean_ptr,
    batch_var_ptr,
    half_mean_ptr,
    half_var_ptr,
    samples,
    channels,
    positions,
    parts,
    length,
    per_group,
    eps,
    STATISTICS: tl.constexpr,
    RATE_IN_MEMORY: tl.constexpr,
    GROUP_WEIGHT_PER_GROUP: tl.constexpr,
    GROUP_BIAS_PER_GROUP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    group = tl.program_id(0)
    k_lane = tl.arange(0, BLOCK_K)
    channel = group * per_group + k_lane
    in_group = k_lane < per_group
    rows = samples * channels

    # Mean and variance of every channel over the batch: merge tiles of samples one after the other (Chan et al.).
    batch_mean = tl.zeros([BLOCK_K], tl.float32)
    batch_squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, samples, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        live = (n < samples)[:, None] & in_group[None, :]
        index = n[:, None] * channels + channel[None, :]
        mean, var = _merge_moments(part_mean_ptr, part_var_ptr, index, live, rows, positions, parts, length, BLOCK_P)
        tl.store(mean_ptr + index, mean, live)
        tl.store(var_ptr + index, var, live)
        here = tl.minimum(samples - start, BLOCK_N) * 1.0
        tile_mean = tl.sum(mean, 0) / here
        off = mean - tile_mean[None, :]
        tile_squares = tl.sum(tl.where(live, var + off * off, 0.0), 0)
        step = tile_mean - batch_mean
        batch_mean += step * (here / (start + here))
        batch_squares += tile_squares + step * step * (start * here / (start + here))
    batch_var = batch_squares / samples

    if STATISTICS == 'batch':
        half_mean = batch_mean
        half_var = batch_var
    else:
        half_mean = tl.load(running_mean_ptr + channel, in_group, other=0.0).to(tl.float32)
        half_var = tl.load(running_var_ptr + channel, in_group, other=0.0).to(tl.float32)
        batch_var += (batch_mean - half_mean) * (batch_mean - half_mean)
    if STATISTICS == 'estimated':
        if RATE_IN_MEMORY:
            rate = tl.load(rate).to(tl.float32)
        half_mean += rate * (batch_mean - half_mean)
        half_var += rate * (batch_var - half_var)
    tl.store(batch_mean_ptr + channel, batch_mean, in_group)
    tl.store(batch_var_ptr + channel, batch_var, in_group)
    tl.store(half_mean_ptr + channel, half_mean, in_group)
    tl.store(half_var_ptr + channel, half_var, in_group)

    a = tl.rsqrt(half_var + eps) * _per_channel(weight_ptr, group, channel, in_group, 1.0, False)
    bias = _per_channel(bias_ptr, group, channel, in_group, 0.0, False)
    gamma = _per_channel(group_weight_ptr, group, channel, in_group, 1.0, GROUP_WEIGHT_PER_GROUP)
    beta = _per_channel(group_bias_ptr, group, channel, in_group, 0.0, GROUP_BIAS_PER_GROUP)
    for start in range(0, samples, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        live = (n < samples)[:, None] & in_group[None, :]
        index = n[:, None] * channels + channel[None, :]
        mean, var = _merge_moments(part_mean_ptr, part_var_ptr, index, live, rows, positions, parts, length, BLOCK_P)
        off, r = _channel_half(mean, var, a, half_mean, bias, live, per_group, eps)
        gamma_r = gamma[None, :] * r
        tl.store(scale_ptr + index, gamma_r * a[None, :], live)
        tl.store(shift_ptr + index, gamma_r * off + beta[None, :], live)


@triton.jit
def _group_gradients(
    dz_sum_ptr, centred_sum_ptr, mean_ptr, var_ptr, n, channel, in_group,
    a, e, bias, gamma, samples, channels, positions, parts, per_group, eps, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Backward of one tile of samples through the channel half to x'.

    Returns:
        Sums over positions of dz, dz z, dx' and dx' (x - e); and q and s for e and d without gradient.
    """
    live = (n < samples)[:, None] & in_group[None, :]
    index = n[:, None] * channels + channel[None, :]
    rows = samples * channels
    dz_sum = _sum_parts(dz_sum_ptr, index, live, rows, parts, BLOCK_P)
    centred_sum = _sum_parts(centred_sum_ptr, index, live, rows, parts, BLOCK_P)
    mean = tl.load(mean_ptr + index, live, other=0.0)
    var = tl.load(var_ptr + index, live, other=0.0)
    off, r = _channel_half(mean, var, a, e, bias, live, per_group, eps)
    z = r * off
    ra = r * a[None, :]
    dz_z_sum = ra * centred_sum + z * dz_sum

    # dx' = r (gamma dz - average - slope z(x)), with z(x) = ra (x - m) + z
    size = positions * 1.0 * per_group
    average = (tl.sum(gamma[None, :] * dz_sum, 1) / size)[:, None]
    slope = (tl.sum(gamma[None, :] * dz_z_sum, 1) / size)[:, None]
    level = average + slope * z
    dx_sum = tl.where(live, r * (gamma[None, :] * dz_sum - positions * level), 0.0)
    dx_centred_sum = r * (gamma[None, :] * centred_sum - positions * slope * ra * var)
    dx_x_sum = tl.where(live, dx_centred_sum + (mean - e[None, :]) * dx_sum, 0.0)
    return dz_sum, dz_z_sum, dx_sum, dx_x_sum, -ra * ra * slope, -ra * level


@triton.jit(do_not_specialize=_SIZES)
def _backward_kernel(
    dz_sum_ptr,
    centred_sum_ptr,
    mean_ptr,
    var_ptr,
    half_mean_ptr,
    half_var_ptr,
    weight_ptr,
    bias_ptr,
    group_weight_ptr,
    q_ptr,
    s_ptr,
    dweight_ptr,
    dbias_ptr,
    dgroup_weight_ptr,
    dgroup_bias_ptr,
    samples,
    channels,
    positions,
    parts,
    per_group,
    eps,
    LIVE_HALF: tl.constexpr,
    GROUP_WEIGHT_PER_GROUP: tl.constexpr,
    GROUP_BIAS_PER_GROUP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    group = tl.program_id(0)
    k_lane = tl.arange(0, BLOCK_K)
    channel = group * per_group + k_lane
    in_group = k_lane < per_group
    e = tl.load(half_mean_ptr + channel, in_group, other=0.0)
    k = tl.rsqrt(tl.load(half_var_ptr + channel, in_group, other=0.0) + eps)
    a = k * _per_channel(weight_ptr, group, channel, in_group, 1.0, False)
    bias = _per_channel(bias_ptr, group, channel, in_group, 0.0, False)
    gamma = _per_channel(group_weight_ptr, group, channel, in_group, 1.0, GROUP_WEIGHT_PER_GROUP)

    dweight = tl.zeros([BLOCK_K], tl.float32)
    dbias = tl.zeros([BLOCK_K], tl.float32)
    dgamma = tl.zeros([BLOCK_K], tl.float32)
    dbeta = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, samples, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        dz_sum, dz_z_sum, dx_sum, dx_x_sum, q, s = _group_gradients(
            dz_sum_ptr, centred_sum_ptr, mean_ptr, var_ptr, n, channel, in_group,
            a, e, bias, gamma, samples, channels, positions, parts, per_group, eps, BLOCK_P,
        )  # fmt: skip
        dbeta += tl.sum(dz_sum, 0)
        dgamma += tl.sum(dz_z_sum, 0)
        dbias += tl.sum(dx_sum, 0)
        dweight += k * tl.sum(dx_x_sum, 0)
        if not LIVE_HALF:
            live = (n < samples)[:, None] & in_group[None, :]
            index = n[:, None] * channels + channel[None, :]
            tl.store(q_ptr + index, q, live)
            tl.store(s_ptr + index, s, live)

    if LIVE_HALF:
        # Batch statistics: their gradient needs the sums over the whole batch.
        count = samples * 1.0 * positions
        for start in range(0, samples, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            dz_sum, dz_z_sum, dx_sum, dx_x_sum, q, s = _group_gradients(
                dz_sum_ptr, centred_sum_ptr, mean_ptr, var_ptr, n, channel, in_group,
                a, e, bias, gamma, samples, channels, positions, parts, per_group, eps, BLOCK_P,
            )  # fmt: skip
            live = (n < samples)[:, None] & in_group[None, :]
            index = n[:, None] * channels + channel[None, :]
            slope = a * k * dweight / count
            off = tl.load(mean_ptr + index, live, other=0.0) - e[None, :]
            tl.store(q_ptr + index, q - slope[None, :], live)
            tl.store(s_ptr + index, s - (a * dbias / count)[None, :] - slope[None, :] * off, live)

    if dweight_ptr is not None:
        tl.store(dweight_ptr + channel, dweight.to(dweight_ptr.dtype.element_ty), in_group)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + channel, dbias.to(dbias_ptr.dtype.element_ty), in_group)
    if dgroup_weight_ptr is not None:
        if GROUP_WEIGHT_PER_GROUP:
            tl.store(dgroup_weight_ptr + group, tl.sum(dgamma, 0).to(dgroup_weight_ptr.dtype.element_ty))
        else:
            tl.store(dgroup_weight_ptr + channel, dgamma.to(dgroup_weight_ptr.dtype.element_ty), in_group)
    if dgroup_bias_ptr is not None:
        if GROUP_BIAS_PER_GROUP:
            tl.store(dgroup_bias_ptr + group, tl.sum(dbeta, 0).to(dgroup_bias_ptr.dtype.element_ty))
        else:
            tl.store(dgroup_bias_ptr + channel, dbeta.to(dgroup_bias_ptr.dtype.element_ty), in_group)


def forward_algebra(
    moments: Moments,
    running: ChannelStatistics | None,
    affines: Affines,
    rate: float | Tensor,
    options: Options,
    positions: int,
) -> Folded:
    """From the moments of x to the affine map that is both halves of BCN.

    With 'frozen' statistics and the `half` of an earlier call as `running`, recomputes the map of that call.

    Args:
        moments: (P, N, C) each, from `channel_moments`.
        running: The running statistics, not changed; None is accepted with 'batch' statistics.
        affines: The parameters.
        rate: Weight of this batch in the running statistics, a float or a 0-d tensor; only 'estimated' uses it.
        options: What the call chooses.
        positions: L, of x.
    """
    mean, var = moments
    parts, samples, channels = mean.shape
    if isinstance(rate, Tensor) and not rate.is_cuda and mean.is_cuda:
        rate = float(rate)
    row_mean, row_var, scale, shift = rows = [torch.empty_like(mean[0]) for _ in range(4)]
    batch_mean, batch_var, half_mean, half_var = per_channel = [mean.new_empty(channels) for _ in range(4)]
    with torch.cuda.device_of(mean):
        _forward_kernel[options.num_groups,](
            mean, var, *(running or (None, None)), *affines, rate, *rows, *per_channel,
            samples, channels, positions, parts, part_length(positions, parts), channels // options.num_groups,
            options.eps, STATISTICS=options.statistics, RATE_IN_MEMORY=isinstance(rate, Tensor),
            **_constants(affines, options.num_groups, mean),
        )  # fmt: skip
    return Folded(
        Moments(row_mean, row_var),
        scale,
        shift,
        ChannelStatistics(batch_mean, batch_var),
        ChannelStatistics(half_mean, half_var),
    )


def backward_algebra(
    dz_sum: Tensor, centred_sum: Tensor, folded: Folded, affines: Affines, options: Options, positions: int
) -> Gradients:
    """From the sums over positions to the coefficients of the gradient map and the gradients of the parameters.

    Args:
        dz_sum, centred_sum: (P, N, C), from `gradient_sums`.
        folded: From `forward_algebra`; its `batch` and `shift` are not used.
        affines, options, positions: As in `forward_algebra`.

    Returns:
        Coefficients of dx = p dz + q (x - m) + s, and gradients with the shape of their affine, None for None.
    """
    parts, samples, channels = dz_sum.shape
    q, s = (torch.empty_like(folded.scale) for _ in range(2))
    grads = Affines(*(None if affine is None else torch.empty_like(affine) for affine in affines))
    with torch.cuda.device_of(dz_sum):
        _backward_kernel[options.num_groups,](
            dz_sum, centred_sum, *folded.moments, *folded.half, *affines[:3],
            q, s, *grads, samples, channels, positions, parts, channels // options.num_groups, options.eps,
            LIVE_HALF=options.statistics == 'batch', **_constants(affines, options.num_groups, dz_sum),
        )  # fmt: skip
    return Gradients(folded.scale, q, s, grads)


def _constants(affines: Affines, num_groups: int, partial: Tensor) -> dict[str, int | bool]:
    """Tiles of the kernels, and which parameters have one value per group."""
    group_weight, group_bias = affines[2:]
    parts, samples, channels = partial.shape
    block_channels = triton.next_power_of_2(channels // num_groups)
    block_samples = min(triton.next_power_of_2(samples), max(1, TILE // block_channels))
    return dict(
        GROUP_WEIGHT_PER_GROUP=group_weight is not None and group_weight.numel() == num_groups,
        GROUP_BIAS_PER_GROUP=group_bias is not None and group_bias.numel() == num_groups,
        # Either 1 or as many as fit, so that few kernels are compiled.
        BLOCK_P=1 if parts == 1 else max(2, TILE // (block_samples * block_channels)),
        BLOCK_N=block_samples,
        BLOCK_K=block_channels,
        num_warps=min(max(block_channels // 256, 4), 16),  # a group of more than TILE channels is still one tile
    )
