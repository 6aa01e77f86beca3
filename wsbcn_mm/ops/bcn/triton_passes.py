"""The passes of one-pass BCN over the data, in Triton: two reductions over positions and two maps.

    moments          mean and variance of x over the positions of every row
    affine           y = relu(scale (x - centre) + shift + residual)
    gradient sums    sum of dz and of dz (x - centre), where dz = dy if y > 0, else 0
    gradient map     dx = p dz + q (x - centre) + s, and dz for the residual

A row is one (sample, channel). All arithmetic is in float32. `triton_algebra` has what happens to the rows' numbers in
between. `operator` imports these modules at the first CUDA tensor, so a machine without triton never does.

Both memory layouts go through the same code, as (samples, rows, positions):

    contiguous       (1, N*C, L), the positions of a row are adjacent
    channels last    (N, C, L), the rows of a position are adjacent

A program works on tiles of BLOCK_R rows by BLOCK_L positions. If the rows are too few to fill the device, the
reductions split the positions into parts of equal length, the last one shorter, and return an axis of parts. The
algebra merges the parts in a fixed order, so results do not vary from run to run.
"""

# Kernels are typed by their compiler.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..memory_format import CHANNELS_LAST

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Elements of a tile: 16 per thread of 4 warps, so four 16-byte loads of float32 in flight.
TILE = 2048
NUM_WARPS = 4
# Longest side of a tile along contiguous memory: at least 512 bytes; longer tiles would be half empty for odd maps.
LONGEST_ROW, MOST_CHANNELS = 256, 64
# Programs per multiprocessor that hide the memory latency.
PROGRAMS_PER_SM = 8
# Parts start at multiples of this, so that their loads are aligned like the rows.
PART_UNIT = 64


class View(NamedTuple):
    """How the kernels see a tensor (N, C, *)."""

    samples: int
    rows: int
    positions: int
    channels_last: bool

    def blocks(self) -> tuple[int, int]:
        """Rows and positions of a tile."""
        if self.channels_last:
            block_rows = min(triton.next_power_of_2(self.rows), MOST_CHANNELS)
            return block_rows, min(triton.next_power_of_2(self.positions), TILE // block_rows)
        block_positions = min(triton.next_power_of_2(self.positions), LONGEST_ROW)
        return min(triton.next_power_of_2(self.rows), TILE // block_positions), block_positions

    def row_blocks(self) -> int:
        """Number of tiles side by side that cover the rows of all samples."""
        return self.samples * triton.cdiv(self.rows, self.blocks()[0])

    def options(self) -> dict[str, int | bool]:
        """Constants of the kernels."""
        block_rows, block_positions = self.blocks()
        return dict(
            BLOCK_R=block_rows,
            BLOCK_L=block_positions,
            CHANNELS_LAST=self.channels_last,
            EVEN_ROWS=self.rows % block_rows == 0,
            num_warps=NUM_WARPS,
        )


def memory_format(x: Tensor) -> torch.memory_format:
    """Contiguous or channels last.

    Raises:
        ValueError: If x is dense in neither.
    """
    if x.is_contiguous():
        return torch.contiguous_format
    channels_last = CHANNELS_LAST.get(x.ndim)
    if channels_last is not None and x.is_contiguous(memory_format=channels_last):
        return channels_last
    raise ValueError(f'x.stride()={x.stride()}: contiguous or channels last is expected for x.shape={tuple(x.shape)}')


def view_of(x: Tensor) -> View:
    """How the kernels see x.

    Raises:
        TypeError: If x is not float32, bfloat16 or float16.
        ValueError: If x is empty, or dense in neither memory format.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f'x.dtype={x.dtype}: float32, bfloat16 or float16 is expected')
    if x.numel() == 0:
        raise ValueError(f'x.shape={tuple(x.shape)}: at least one value is expected')
    samples, channels = x.shape[:2]
    positions = x.numel() // (samples * channels)
    if memory_format(x) is torch.contiguous_format:
        return View(1, samples * channels, positions, False)
    return View(samples, channels, positions, True)


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == 'cuda' else 1


def part_length(positions: int, parts: int) -> int:
    """Length of every part but the last, for the number of parts from `split`."""
    return triton.cdiv(triton.cdiv(positions, parts), PART_UNIT) * PART_UNIT


def split(view: View, multiprocessors: int) -> int:
    """Number of parts with which a reduction fills the device while each program has at least a tile of work."""
    wanted = triton.cdiv(multiprocessors * PROGRAMS_PER_SM, view.row_blocks())
    return whole_parts(view.positions, min(wanted, triton.cdiv(view.positions, view.blocks()[1])))


def whole_parts(positions: int, parts: int) -> int:
    """Number of parts that contain a position, after their length is rounded up."""
    return triton.cdiv(positions, part_length(positions, parts))


@triton.jit
def _place(rows, splits, BLOCK_R: tl.constexpr, CHANNELS_LAST: tl.constexpr, REVERSED: tl.constexpr):
    """Row block, part of the positions and sample of this program; adjacent programs get adjacent memory.

    REVERSED: the maps start where the reductions ended, because that data may still be in the cache.
    """
    program = tl.program_id(0)
    if REVERSED:
        program = tl.num_programs(0) - 1 - program
    row_blocks = tl.cdiv(rows, BLOCK_R)
    within = program % (row_blocks * splits)
    if CHANNELS_LAST:
        row_block = within % row_blocks
        part = within // row_blocks
    else:
        row_block = within // splits
        part = within % splits
    return row_block, part, program // (row_blocks * splits)


@triton.jit
def _row_offsets(row, sample, rows, positions, CHANNELS_LAST: tl.constexpr):
    """Offset of each row's first position, in 64 bits."""
    return sample.to(tl.int64) * rows * positions + row if CHANNELS_LAST else row.to(tl.int64) * positions


@triton.jit
def _inside(row, rows, position, stop, EVEN_ROWS: tl.constexpr):
    """Which elements of a tile exist, to be broadcast over it.

    EVEN_ROWS: all rows of the tiles exist; skipping the test saves a quarter of the instructions of scalar loads.
    """
    inside = (position < stop)[None, :]
    if not EVEN_ROWS:
        inside = inside & (row < rows)[:, None]
    return inside


@triton.jit
def _moments_kernel(
    x_ptr,
    mean_ptr,
    var_ptr,
    samples,
    rows,
    positions,
    parts,
    length,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
):
    row_block, part, sample = _place(rows, parts, BLOCK_R, CHANNELS_LAST, False)
    row = row_block * BLOCK_R + tl.arange(0, BLOCK_R)
    lane = tl.arange(0, BLOCK_L)
    stride = rows if CHANNELS_LAST else 1
    tile = x_ptr + _row_offsets(row, sample, rows, positions, CHANNELS_LAST)[:, None] + (lane * stride)[None, :]

    # Welford's recurrence in every lane of the tile; lanes are independent until the end.
    start = part.to(tl.int64) * length
    stop = tl.minimum(start + length, positions)
    mean = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    squares = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    seen = 0.0
    for position in range(start, stop, BLOCK_L):
        seen += 1.0
        live = _inside(row, rows, position + lane, stop, EVEN_ROWS)
        x = tl.load(tile + position * stride, live, other=0.0).to(tl.float32)
        off = tl.where(live, x - mean, 0.0)
        mean += off * (1.0 / seen)
        squares += off * (x - mean)

    # Merge lanes around the first one, so that a constant row has its value as mean and no variance.
    size = stop - start
    count = ((size - lane + BLOCK_L - 1) // BLOCK_L * 1.0)[None, :]
    first = tl.sum(tl.where(lane[None, :] == 0, mean, 0.0), 1)
    row_mean = first + tl.sum(count * (mean - first[:, None]), 1) / (size * 1.0)
    off = mean - row_mean[:, None]
    row_var = tl.sum(squares + count * off * off, 1) / (size * 1.0)
    index = (part * samples + sample) * rows + row
    tl.store(mean_ptr + index, row_mean, row < rows)
    tl.store(var_ptr + index, row_var, row < rows)


@triton.jit
def _affine_kernel(
    x_ptr,
    centre_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    y_ptr,
    rows,
    positions,
    RELU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
):
    row_block, block, sample = _place(rows, tl.cdiv(positions, BLOCK_L), BLOCK_R, CHANNELS_LAST, True)
    row = row_block * BLOCK_R + tl.arange(0, BLOCK_R)
    lane = tl.arange(0, BLOCK_L)
    stride = rows if CHANNELS_LAST else 1
    position = block.to(tl.int64) * BLOCK_L
    offset = _row_offsets(row, sample, rows, positions, CHANNELS_LAST)[:, None] + (lane * stride)[None, :]
    offset += position * stride
    live = _inside(row, rows, position + lane, positions, EVEN_ROWS)
    index = sample * rows + row
    centre = tl.load(centre_ptr + index, row < rows, other=0.0)[:, None]
    scale = tl.load(scale_ptr + index, row < rows, other=0.0)[:, None]
    shift = tl.load(shift_ptr + index, row < rows, other=0.0)[:, None]

    y = scale * (tl.load(x_ptr + offset, live, other=0.0).to(tl.float32) - centre) + shift
    if residual_ptr is not None:
        y += tl.load(residual_ptr + offset, live, other=0.0).to(tl.float32)
    if RELU:
        y = tl.where(y <= 0.0, 0.0, y)  # keeps NaN, unlike a maximum
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), live)


@triton.jit
def _through_relu(dy_ptr, centred, scale, shift, residual_ptr, y_ptr, offset, live, RELU: tl.constexpr):
    """dz: dy where the output of the forward, read or recomputed, is positive."""
    dz = tl.load(dy_ptr + offset, live, other=0.0).to(tl.float32)
    if RELU:
        if y_ptr is not None:
            y = tl.load(y_ptr + offset, live, other=0.0).to(tl.float32)
        else:
            y = scale * centred + shift
            if residual_ptr is not None:
                y += tl.load(residual_ptr + offset, live, other=0.0).to(tl.float32)
        dz = tl.where(y <= 0.0, 0.0, dz)
    return dz


@triton.jit
def _gradient_sums_kernel(
    dy_ptr,
    x_ptr,
    centre_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    y_ptr,
    sum_ptr,
    centred_sum_ptr,
    samples,
    rows,
    positions,
    parts,
    length,
    RELU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
):
    row_block, part, sample = _place(rows, parts, BLOCK_R, CHANNELS_LAST, False)
    row = row_block * BLOCK_R + tl.arange(0, BLOCK_R)
    lane = tl.arange(0, BLOCK_L)
    stride = rows if CHANNELS_LAST else 1
    tile = _row_offsets(row, sample, rows, positions, CHANNELS_LAST)[:, None] + (lane * stride)[None, :]
    index = sample * rows + row
    centre = tl.load(centre_ptr + index, row < rows, other=0.0)[:, None]
    scale = tl.load(scale_ptr + index, row < rows, other=0.0)[:, None]
    shift = tl.load(shift_ptr + index, row < rows, other=0.0)[:, None]

    start = part.to(tl.int64) * length
    stop = tl.minimum(start + length, positions)
    dz_sum = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    centred_sum = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    for position in range(start, stop, BLOCK_L):
        live = _inside(row, rows, position + lane, stop, EVEN_ROWS)
        offset = tile + position * stride
        centred = tl.load(x_ptr + offset, live, other=0.0).to(tl.float32) - centre
        dz = _through_relu(dy_ptr, centred, scale, shift, residual_ptr, y_ptr, offset, live, RELU)
        dz_sum += dz
        centred_sum += dz * centred
    index += part * samples * rows
    tl.store(sum_ptr + index, tl.sum(dz_sum, 1), row < rows)
    tl.store(centred_sum_ptr + index, tl.sum(centred_sum, 1), row < rows)


@triton.jit
def _gradient_map_kernel(
    dy_ptr,
    x_ptr,
    centre_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    y_ptr,
    p_ptr,
    q_ptr,
    s_ptr,
    dx_ptr,
    dresidual_ptr,
    rows,
    positions,
    RELU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    EVEN_ROWS: tl.constexpr,
):
    row_block, block, sample = _place(rows, tl.cdiv(positions, BLOCK_L), BLOCK_R, CHANNELS_LAST, True)
    row = row_block * BLOCK_R + tl.arange(0, BLOCK_R)
    lane = tl.arange(0, BLOCK_L)
    stride = rows if CHANNELS_LAST else 1
    position = block.to(tl.int64) * BLOCK_L
    offset = _row_offsets(row, sample, rows, positions, CHANNELS_LAST)[:, None] + (lane * stride)[None, :]
    offset += position * stride
    live = _inside(row, rows, position + lane, positions, EVEN_ROWS)
    index = sample * rows + row
    centre = tl.load(centre_ptr + index, row < rows, other=0.0)[:, None]
    scale = tl.load(scale_ptr + index, row < rows, other=0.0)[:, None]
    shift = tl.load(shift_ptr + index, row < rows, other=0.0)[:, None]
    p = tl.load(p_ptr + index, row < rows, other=0.0)[:, None]
    q = tl.load(q_ptr + index, row < rows, other=0.0)[:, None]
    s = tl.load(s_ptr + index, row < rows, other=0.0)[:, None]

    centred = tl.load(x_ptr + offset, live, other=0.0).to(tl.float32) - centre
    dz = _through_relu(dy_ptr, centred, scale, shift, residual_ptr, y_ptr, offset, live, RELU)
    tl.store(dx_ptr + offset, (p * dz + q * centred + s).to(dx_ptr.dtype.element_ty), live)
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + offset, dz.to(dresidual_ptr.dtype.element_ty), live)


def channel_moments(x: Tensor, parts: int | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every (sample, channel) over its positions, or over parts of them.

    Args:
        x: (N, C, *) in float32, bfloat16 or float16, contiguous or channels last, not empty.
        parts: Maximum number of parts of the positions; by default as many as fill the device.

    Returns:
        Mean and variance, each (P, N, C) in float32; `forward_algebra` merges the P parts.

    Raises:
        TypeError, ValueError: As `view_of`.
    """
    view = view_of(x)
    grid, parts = _reduction(view, x.device, parts)
    mean, var = (x.new_empty((parts, *x.shape[:2]), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        _moments_kernel[grid](
            x, mean, var, *view[:3], parts, part_length(view.positions, parts), **view.options()
        )  # fmt: skip
    return mean, var


def affine(x: Tensor, centre: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """y = scale * (x - centre) + shift, plus `residual`, through a ReLU if `relu`.

    Args:
        x: As in `channel_moments`.
        centre, scale, shift: (N, C) in float32, contiguous.
        residual: Of the shape of x, or None; copied first if its memory format differs.
        relu: Whether to set negative values to 0.

    Returns:
        y with the shape, dtype and memory format of x.
    """
    view = view_of(x)
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _affine_kernel[_tiles(view)](
            x, centre, scale, shift, _laid_out_like(x, residual), y, view.rows, view.positions, relu, **view.options()
        )  # fmt: skip
    return y


def gradient_sums(
    dy: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    relu: bool,
    y: Tensor | None = None,
    parts: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums over positions of dz and of dz * (x - centre), where dz is the gradient before the ReLU.

    Args:
        dy: Gradient of the output of `affine`; copied first if its memory format is not that of x.
        x, centre, scale, shift, residual, relu: As in the call of `affine`.
        y: Its output, if that was kept: the source of ReLU's mask, in which case `residual` is not read. Without it the
            mask is recomputed.
        parts: As in `channel_moments`.

    Returns:
        The two sums, each (P, N, C) in float32; `backward_algebra` adds the P parts.
    """
    view = view_of(x)
    grid, parts = _reduction(view, x.device, parts)
    dz_sum, centred_sum = (x.new_empty((parts, *x.shape[:2]), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(x):
        _gradient_sums_kernel[grid](
            _laid_out_like(x, dy), x, centre, scale, shift, _laid_out_like(x, residual), _laid_out_like(x, y),
            dz_sum, centred_sum, *view[:3], parts, part_length(view.positions, parts), relu, **view.options(),
        )  # fmt: skip
    return dz_sum, centred_sum


def gradient_map(
    dy: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    relu: bool,
    p: Tensor,
    q: Tensor,
    s: Tensor,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dx = p * dz + q * (x - centre) + s, where dz is the gradient before the ReLU.

    Args:
        dy, x, centre, scale, shift, residual, relu, y: As in `gradient_sums`.
        p, q, s: (N, C) in float32, contiguous.

    Returns:
        dx in the dtype and memory format of x. dz, the gradient of the residual, in the dtype of the residual (of x if
        only y is given) and the memory format of x; None with neither residual nor y.
    """
    view = view_of(x)
    dx = torch.empty_like(x)
    like = y if residual is None else residual
    dresidual = None if like is None else torch.empty_like(x, dtype=like.dtype)
    with torch.cuda.device_of(x):
        _gradient_map_kernel[_tiles(view)](
            _laid_out_like(x, dy), x, centre, scale, shift, _laid_out_like(x, residual), _laid_out_like(x, y),
            p, q, s, dx, dresidual, view.rows, view.positions, relu, **view.options(),
        )  # fmt: skip
    return dx, dresidual


def _reduction(view: View, device: torch.device, parts: int | None) -> tuple[tuple[int], int]:
    """Grid and number of parts of a reduction."""
    parts = split(view, _multiprocessors(device)) if parts is None else whole_parts(view.positions, parts)
    return (view.row_blocks() * parts,), parts


def _tiles(view: View) -> tuple[int]:
    """Grid of a map: a program for every tile."""
    return (view.row_blocks() * triton.cdiv(view.positions, view.blocks()[1]),)


def _laid_out_like(x: Tensor, other: Tensor | None) -> Tensor | None:
    return None if other is None else other.contiguous(memory_format=memory_format(x))
