"""Batch-Channel Normalization: a batch normalisation per channel, then a group normalisation per sample.

    batch half     x' = weight * (x - mean_c) / sqrt(var_c + eps) + bias               per channel c
    channel half   y  = group_weight * (x' - mean_ng) / sqrt(var_ng + eps) + group_bias  per sample n and group g

In micro-batch BCN, mean_c and var_c are running estimates that carry no gradient; mean_ng and var_ng are live and
differentiated. Source: arXiv 1903.10520 v2, Algorithm 1; README (`EstBN`, `BCNorm`) of
joe-siyuan-qiao/Batch-Channel-Normalization.

`reference` is the readable form, `operator` the fast one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch_norm import num_ranks
from .algebra import Affines, ChannelStatistics, Options
from .operator import one_pass_batch_channel_norm, runs_in_one_pass
from .reference import batch_channel_norm_steps

STATISTICS = ('estimated', 'batch', 'sync', 'frozen')


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
    residual: Tensor | None = None,
    relu: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """Micro-batch BCN with estimated statistics.

    Training first moves the estimates, then normalises the batch with the UPDATED ones; no gradient flows through them.
    Evaluation is the same map without the update, so both agree for equal buffers.

    Args:
        x: (N, C, *) with any number of trailing axes; N and the positions may be 1, N may be 0.
        running_mean: (C,); changed in training.
        running_var: (C,); changed in training.
        weight: (C,) scale of the batch half, or None.
        bias: (C,) shift of the batch half, or None.
        group_weight: (G,) or (C,) scale of the channel half, or None.
        group_bias: (G,) or (C,) shift of the channel half, or None.
        num_groups: G, a divisor of C.
        rate: Weight of this batch in the estimates, in [0, 1]; 0 freezes them.
        training: Whether to update the estimates.
        residual: Of the shape of x; added to the normalised x.
        relu: Whether a ReLU ends the operator.
        eps: Added to both variances.

    Returns:
        (N, C, *) with the dtype and memory format of `x`.

    Raises:
        ValueError: As `normalize_and_measure`.
    """
    running = ChannelStatistics(running_mean, running_var)
    affines = Affines(weight, bias, group_weight, group_bias)
    options = Options(num_groups, 'estimated' if training else 'frozen', relu, eps)
    out, measured = normalize_and_measure(x, residual, running, affines, rate, options)
    if training:
        update_running_statistics(running, measured, rate)
    return out


def normalize_and_measure(
    x: Tensor,
    residual: Tensor | None,
    running: ChannelStatistics,
    affines: Affines,
    rate: float | Tensor,
    options: Options,
) -> tuple[Tensor, ChannelStatistics]:
    """Normalise x, and measure what its channels contribute to the running statistics. Changes no buffer.

    `options.statistics` chooses what the batch half normalises with:

    * `estimated`: the running statistics, moved by `rate` towards this batch. The second moment of the batch is taken
      around the OLD running mean, so that a drift of the batch mean counts as variance (Algorithm 1, steps 1-4). No
      gradient flows through them.
    * `batch`: mean and biased variance of this batch, differentiated.
    * `sync`: mean and biased variance of the batches of all ranks, differentiated; `batch` without a process group.
    * `frozen`: the running statistics as they are.

    Args:
        x: (N, C, *).
        residual: Of the shape of x, or None; added to the normalised x.
        running: The running statistics, in float32 or better.
        affines: The learned scales and shifts.
        rate: Weight of this batch in the running statistics, in [0, 1], a float or a 0-d tensor.
        options: What this call chooses.

    Returns:
        The output, as from `batch_channel_norm`.
        What the running statistics should move towards, in their dtype and detached: the mean, and for `estimated` the
        second moment around the old running mean, for `batch` and `sync` the unbiased variance, as in torch's
        BatchNorm. For `frozen` and for an empty batch, the running statistics themselves.

    Raises:
        ValueError: If x has fewer than 2 axes, `num_groups` does not divide C, another tensor does not have the shape
            or the device that x asks for, the statistics are unknown, or `batch` gets fewer than 2 values per channel.
    """
    check_arguments(x, residual, running, affines, options)
    if options.statistics == 'sync' and num_ranks() == 1:
        options = options._replace(statistics='batch')
    if options.statistics == 'batch' and x.numel() < 2 * x.shape[1]:
        raise ValueError(
            f'x.shape={tuple(x.shape)}: batch statistics need at least 2 values per channel, this input has '
            f"{x.numel() // x.shape[1]}; use statistics='estimated'"
        )
    if options.statistics != 'sync' and runs_in_one_pass(x):
        return one_pass_batch_channel_norm(x, residual, running, affines, rate, options)
    return batch_channel_norm_steps(x, residual, running, affines, rate, options)


def update_running_statistics(running: ChannelStatistics, measured: ChannelStatistics, rate: float | Tensor) -> None:
    """Move the running statistics by `rate` towards what a batch measured, in place."""
    with torch.no_grad():
        running.mean.lerp_(measured.mean, rate)
        running.var.lerp_(measured.var, rate)


def check_arguments(
    x: Tensor, residual: Tensor | None, running: ChannelStatistics, affines: Affines, options: Options
) -> None:
    """Raise ValueError unless all shapes and devices fit x and the statistics are known."""
    num_groups = options.num_groups
    if x.ndim < 2:
        raise ValueError(f'x.shape={tuple(x.shape)}: (N, C, *) is expected')
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f'num_groups={num_groups}: a divisor of the {x.shape[1]} channels of x is expected')
    per_channel, per_group = x.shape[1:2], (num_groups,)
    for name, tensor, *shapes in (
        ('running_mean', running.mean, per_channel),
        ('running_var', running.var, per_channel),
        ('weight', affines.weight, per_channel),
        ('bias', affines.bias, per_channel),
        ('group_weight', affines.group_weight, per_group, per_channel),
        ('group_bias', affines.group_bias, per_group, per_channel),
        ('residual', residual, x.shape),
    ):
        if tensor is not None:
            check_fits(x, name, tensor, shapes)
    if options.statistics not in STATISTICS:
        raise ValueError(f'statistics={options.statistics!r}: one of {", ".join(STATISTICS)} is expected')


def check_fits(x: Tensor, name: str, tensor: Tensor, shapes: Sequence[Sequence[int]]) -> None:
    """Raise ValueError unless `tensor` has one of the shapes and is on the device of x; the C code does not check."""
    if tensor.shape not in shapes:
        expected = ' or '.join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f'{name}.shape={tuple(tensor.shape)}: {expected} is expected for x.shape={tuple(x.shape)}')
    if tensor.device != x.device:
        raise ValueError(f'{name}.device={tensor.device}: {x.device}, the device of x, is expected')
