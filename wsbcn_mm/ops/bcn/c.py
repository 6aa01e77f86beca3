"""BCN's passes over data on CPU in C (`c.c`): one pass over memory does all the work.

Torch's own operators cannot fuse a reduction with ReLU's mask, nor two affine maps. `aten` uses those operators; it
takes over for float64 and on machines without a C compiler.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..memory_format import in_layout_of
from .algebra import Affines, ChannelStatistics, Moments, Options
from .c_library import load_library

STATISTICS = {'estimated': 0, 'batch': 1, 'frozen': 2}
# Fewer values per thread than this do not repay the time to wake it.
_VALUES_PER_THREAD = 2**16
# Channels of one task in channels last: two cache lines.
_SPAN = 32


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ('samples', 'channels', 'positions', 'groups', 'statistics', 'relu')),
        *((name, ctypes.c_int64) for name in ('threads', 'channels_last', 'groups_per_task')),
        ('eps', ctypes.c_float),
    ]


class _Affines(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in Affines._fields),
        ('group_weight_size', ctypes.c_int64),
        ('group_bias_size', ctypes.c_int64),
    ]


def takes(x: Tensor) -> bool:
    """Whether x has at most 32 bits per value and the C library is available; x is dense in its memory format."""
    return x.dtype != torch.float64 and _library() is not None


def forward(
    x: Tensor,
    residual: Tensor | None,
    running: ChannelStatistics,
    affines: Affines,
    rate: Tensor,
    options: Options,
) -> tuple[Tensor, ChannelStatistics, ChannelStatistics, Moments]:
    """As `aten.forward`."""
    values = x.float()
    samples, channels = x.shape[:2]
    out = torch.empty_like(values)
    added = None if residual is None else in_layout_of(residual.float(), x)
    buffers = [t.float().contiguous() for t in running]
    per_channel = [values.new_empty(channels) for _ in range(4)]
    per_row = [values.new_empty(samples, channels) for _ in range(2)]
    scratch = values.new_empty(2 * samples * channels)
    _owners, of_c = _affines(affines)
    _library().bcn_forward(
        ctypes.byref(_problem(x, options)),
        *_pointers(values, added, *buffers),
        ctypes.byref(of_c),
        float(rate),
        *_pointers(out, *per_channel, *per_row, scratch),
    )
    return out.to(x.dtype), ChannelStatistics(*per_channel[2:]), ChannelStatistics(*per_channel[:2]), Moments(*per_row)


def backward(
    dy: Tensor,
    x: Tensor,
    out: Tensor | None,
    half: ChannelStatistics,
    moments: Moments,
    affines: Affines,
    options: Options,
) -> tuple[Tensor, Tensor, Affines]:
    """As `aten.backward`."""
    values, dy = x.float(), dy.float()
    samples, channels = x.shape[:2]
    dx = torch.empty_like(values)
    dz = dy if out is None else torch.empty_like(values)
    gradients = [values.new_zeros(channels) for _ in range(4)]
    scratch = values.new_empty(9 * samples * channels)
    _owners, of_c = _affines(affines)
    mask = None if out is None else out.float()
    _library().bcn_backward(
        ctypes.byref(_problem(x, options)),
        *_pointers(dy, values, mask, *half, *moments),
        ctypes.byref(of_c),
        *_pointers(dx, None if out is None else dz, *gradients, scratch),
    )
    return dx.to(x.dtype), dz.to(x.dtype), Affines(*gradients)


@functools.cache
def _library() -> Any:
    library = load_library(Path(__file__).with_suffix('.c'))
    if library is not None:
        pointer = ctypes.c_void_p
        library.bcn_forward.argtypes = [pointer] * 6 + [ctypes.c_float] + [pointer] * 8
        library.bcn_backward.argtypes = [pointer] * 16
        library.bcn_forward.restype = library.bcn_backward.restype = None
    return library


def _problem(x: Tensor, options: Options) -> _Problem:
    num_groups, statistics, relu, eps = options
    samples, channels = x.shape[:2]
    positions = x.numel() // (samples * channels)
    threads = max(1, min(torch.get_num_threads(), x.numel() // _VALUES_PER_THREAD))
    channels_last = not x.is_contiguous()
    groups_per_task = 1
    if channels_last:
        groups_per_task = max(1, min(_SPAN * num_groups // channels, num_groups // threads))
    return _Problem(
        samples,
        channels,
        positions,
        num_groups,
        STATISTICS[statistics],
        relu,
        threads,
        channels_last,
        groups_per_task,
        eps,
    )


def _affines(affines: Affines) -> tuple[list[Tensor | None], _Affines]:
    """The tensors that own the memory of the affines, and the affines as a C structure."""
    kept = [None if t is None else t.float().contiguous() for t in affines]
    sizes = (0 if t is None else t.numel() for t in kept[2:])
    return kept, _Affines(*(None if t is None else t.data_ptr() for t in kept), *sizes)


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if t is None else t.data_ptr() for t in tensors]
