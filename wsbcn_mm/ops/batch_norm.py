"""Batch normalisation with live statistics, of one rank's batch or of the batches of all ranks together.

torch's SyncBatchNorm runs on GPUs only. This one uses differentiable all-reduces, so the same model trains on CPU with
gloo, on one GPU, or on many. Without a process group both forms are the same.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def num_ranks() -> int:
    """Size of the default process group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    rate: float | Tensor,
    training: bool,
    synchronize: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation of a tensor of any rank.

    Training normalises with live statistics, differentiated, and updates the buffers as torch's BatchNorm does: the
    running variance moves towards the unbiased one. Evaluation uses the buffers.

    Args:
        x: (N, C, *).
        running_mean: (C,); changed in training.
        running_var: (C,); changed in training.
        weight: (C,) or None.
        bias: (C,) or None.
        rate: Weight of this batch in the buffers (torch's `momentum`).
        training: Whether to use live statistics.
        synchronize: Whether to take them over the batches of all ranks, which may differ in size and be empty on some
            ranks.
        eps: Added to the variance.

    Returns:
        (N, C, *) in float32 or better.

    Raises:
        ValueError: If training without other ranks gets fewer than 2 values per channel.
    """
    synchronize = synchronize and num_ranks() > 1
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if not training:
        mean, var = running_mean.clone(), running_var.clone()
    else:
        positions = x.numel() // x.shape[1]
        if positions < 2 and not synchronize:
            raise ValueError(
                f'x.shape={tuple(x.shape)}: batch statistics need at least 2 values per channel, '
                f'this input has {positions}'
            )
        mean, var, count = moments_of_all_ranks(x, synchronize)
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), rate)
            running_var.lerp_((var * (count / (count - 1).clamp_min(1))).to(running_var.dtype), rate)
    scale = torch.rsqrt(var.to(x.dtype) + eps)
    if weight is not None:
        scale = scale * weight
    out = (x - mean.view(per_channel)) * scale.view(per_channel)
    return out if bias is None else out + bias.view(per_channel)


def moments_of_all_ranks(x: Tensor, synchronize: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of every channel over the batches of all ranks, differentiated.

    Args:
        x: (N, C, *) of this rank; batches may differ in size, and be empty on some ranks.
        synchronize: Whether to include the other ranks.

    Returns:
        Mean (C,) and variance (C,) in float32 or better, and the number of values per channel, 0-d.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    over = [0, *range(2, x.ndim)]
    # One all-reduce sends counts and sums, so that batches weigh by their size.
    local = torch.cat([x.sum(over), x.new_full((1,), x.numel() // x.shape[1])])
    total = all_reduce(local) if synchronize else local
    count = total[-1].detach()
    mean = total[:-1] / count.clamp_min(1)
    squares = (x - mean.view((-1,) + (1,) * (x.ndim - 2))).square().sum(over)
    return mean, (all_reduce(squares) if synchronize else squares) / count.clamp_min(1), count
