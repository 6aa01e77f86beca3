"""Give the output of a normalisation the memory format of its input."""

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def like_input(out: Tensor, x: Tensor) -> Tensor:
    """`out` with the dtype of `x`, channels last if `x` is, contiguous otherwise.

    Args:
        out: (N, C, *).
        x: (N, C, *) of the same shape.
    """
    channels_last = CHANNELS_LAST.get(x.ndim)
    if channels_last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=channels_last):
        return out.to(x.dtype).contiguous(memory_format=channels_last)
    return out.to(x.dtype).contiguous()


def in_layout_of(t: Tensor, x: Tensor) -> Tensor:
    """t with the strides of x, which is contiguous or channels last.

    Args:
        t: (N, C, *) of any strides.
        x: (N, C, *) of the same shape.
    """
    return t.contiguous() if x.is_contiguous() else t.contiguous(memory_format=CHANNELS_LAST[x.ndim])
