"""Batch Normalization synchronised in every forward and backward pass, on CPU.

torch's SyncBatchNorm runs only on GPUs. This one sends the same messages (torch/nn/modules/_functions.py): per layer an
all-gather of mean, deviation and count in the forward pass, and an all-reduce of two sums per channel in the backward
pass. It computes with torch's CPU kernels, so the rest of a step costs as much as BatchNorm's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Normalize(torch.autograd.Function):
    """Normalise (N, C, *) with the statistics of all ranks, and return those statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        own = torch.cat([mean, var, mean.new_full((1,), x.numel() / channels)])
        gathered = own.new_empty(dist.get_world_size(), 2 * channels + 1)
        dist.all_gather_into_tensor(gathered.view(-1), own)
        means, variances, counts = gathered[:, :channels], gathered[:, channels:-1], gathered[:, -1:]
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        var = ((variances + (means - mean).square()) * counts).sum(0) / total
        out = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, total)
        return out, mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var, total = ctx.saved_tensors
        nothing, needed = grad.new_empty(0), [False, True, True]
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad.contiguous(), x, weight, mean, var, nothing, nothing, False, ctx.eps, needed
        )
        sums = torch.cat([of_bias, of_weight])
        dist.all_reduce(sums)
        of_ones, of_normalized = (sums / total).chunk(2)
        deviation = torch.rsqrt(var + ctx.eps)
        scale, slope = weight * deviation, weight * deviation.square() * of_normalized
        shape = (-1,) + (1,) * (x.ndim - 2)
        of_x = torch.addcmul((slope * mean - scale * of_ones).view(shape), grad, scale.view(shape))
        return of_x.addcmul_(x, slope.view(shape), value=-1), of_weight, of_bias, None


class SyncedBatchNorm(nn.Module):
    """A BatchNorm of (N, C, *) whose training statistics are those of all ranks' batches."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum = norm.weight, norm.bias, norm.eps, norm.momentum or 0.1
        self.register_buffer('running_mean', norm.running_mean)
        self.register_buffer('running_var', norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        out, mean, var, total = _Normalize.apply(x.contiguous(), self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (total / (total - 1)), self.momentum)
        return out


def synchronize(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm of a model by a SyncedBatchNorm, in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, SyncedBatchNorm(child))
    return model
