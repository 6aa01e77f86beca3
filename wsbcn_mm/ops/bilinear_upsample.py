"""Bilinear interpolation with a deterministic gradient, also on GPUs.

    y = A_h x A_w^T        dx = A_h^T dy A_w        per sample and channel

A_h (H', H) and A_w (W', W) are the interpolation along each axis. torch's own backward on a GPU adds contributions in
the order in which its threads arrive. With `torch.use_deterministic_algorithms` it instead gathers four maps of the
size of the output and sorts indices. Two matrix products have a fixed order and need one map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def bilinear_upsample(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """`F.interpolate(x, size, mode='bilinear')`: the same values, and a deterministic gradient.

    The gradient is computed in float32 or better. On a GPU its precision is that of float32 matrix products, which
    `torch.backends.cuda.matmul` sets.

    Args:
        x: (N, C, H, W) of any floating dtype.
        size: (H', W'), larger or smaller.
        align_corners: As in `F.interpolate`.

    Returns:
        (N, C, H', W') in the dtype of `x`, or in autocast's.

    Raises:
        ValueError: If `x` is not (N, C, H, W), or `size` is not two positive numbers.
    """
    if x.ndim != 4:
        raise ValueError(f'x.shape={tuple(x.shape)}: (N, C, H, W) is expected')
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f'size={tuple(size)}: two positive numbers (H, W) are expected')
    return _Interpolate.apply(x, int(size[0]), int(size[1]), align_corners)


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
        ctx.inputs, ctx.dtype, ctx.align_corners = x.shape[2:], x.dtype, align_corners
        # Not F.interpolate, which on a GPU uses the slow deterministic path for the sake of its own gradient.
        return torch._C._nn.upsample_bilinear2d(x, (height, width), align_corners, None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        dtype = torch.promote_types(grad.dtype, torch.float32)
        rows, columns = (
            interpolation(inputs, outputs, ctx.align_corners, grad.device, dtype)
            for inputs, outputs in zip(ctx.inputs, grad.shape[2:], strict=True)
        )
        with torch.autocast(grad.device.type, enabled=False):
            pulled = rows.T @ grad.to(dtype) @ columns
        return pulled.to(ctx.dtype), None, None, None


def interpolation(inputs: int, outputs: int, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(outputs, inputs): the weight of each input in each output along one axis, computed by torch itself."""
    impulses = torch.eye(inputs, device=device, dtype=dtype).unsqueeze(0)
    return torch._C._nn.upsample_linear1d(impulses, (outputs,), align_corners, None).squeeze(0).T
