"""Weight Standardization on a GPU: one Triton program per filter, forward and backward.

The same two functions on rows (O, I), and the same formulas, as `fused.py` has in ATen. Rows are read in blocks, three
times forward and twice backward; only the first read reaches main memory. There are no atomic operations, so results
are the same in every run.
"""

# Kernels are typed by Triton's compiler.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK = 4096


def standardize_rows(
    rows: Tensor, divisor: tuple[float, float, bool], dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Standardise each row of (O, I).

    Args:
        rows: (O, I) in float32 or less.
        divisor: (degrees, eps, eps_inside). A row of norm n is divided by sqrt(n^2 / degrees + eps) if `eps_inside`,
            else by n / sqrt(degrees) + eps.
        dtype: Of the result.

    Returns:
        The rows in `dtype`, and what `pull_back_rows` needs: mean and norm of each row, (O,) in float32.
    """
    rows = rows.contiguous()
    out = torch.empty_like(rows, dtype=dtype)
    mean, norm = (torch.empty(len(rows), dtype=torch.float32, device=rows.device) for _ in range(2))
    with torch.cuda.device_of(rows):
        _standardize[len(rows),](rows, out, mean, norm, *_numbers(rows, divisor), **_options(rows, divisor))
    return out, (mean, norm)


def pull_back_rows(grad: Tensor, rows: Tensor, saved: Sequence[Tensor], divisor: tuple[float, float, bool]) -> Tensor:
    """The gradient of the raw rows, (O, I) in their dtype."""
    mean, norm = saved
    grad, rows = grad.contiguous(), rows.contiguous()
    pulled = torch.empty_like(rows)
    with torch.cuda.device_of(rows):
        _pull_back[len(rows),](grad, rows, mean, norm, pulled, *_numbers(rows, divisor), **_options(rows, divisor))
    return pulled


def _numbers(rows: Tensor, divisor: tuple[float, float, bool]) -> tuple[int, float, float]:
    degrees, eps, _ = divisor
    return rows.shape[1], 1 / degrees, eps


def _options(rows: Tensor, divisor: tuple[float, float, bool]) -> dict[str, Any]:
    _, _, eps_inside = divisor
    block = min(triton.next_power_of_2(rows.shape[1]), MAX_BLOCK)
    return dict(eps_inside=eps_inside, block=block, num_warps=4 if block <= 1024 else 8)


@triton.jit
def _divisor(norm, inverse_degrees, eps, eps_inside: tl.constexpr):
    if eps_inside:
        return tl.sqrt(norm * norm * inverse_degrees + eps)
    return norm * tl.sqrt(inverse_degrees) + eps


@triton.jit
def _standardize(
    rows, out, mean_out, norm_out, fan_in, inverse_degrees, eps, eps_inside: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    rows += row * fan_in
    out += row * fan_in
    columns = tl.arange(0, block)

    total = tl.zeros([block], tl.float32)
    for start in range(0, fan_in, block):
        total += tl.load(rows + start + columns, mask=start + columns < fan_in, other=0).to(tl.float32)
    mean = tl.sum(total) / fan_in

    squares = tl.zeros([block], tl.float32)
    for start in range(0, fan_in, block):
        inside = start + columns < fan_in
        centred = tl.where(inside, tl.load(rows + start + columns, mask=inside, other=0).to(tl.float32) - mean, 0)
        squares += centred * centred
    norm = tl.sqrt(tl.sum(squares))

    std = _divisor(norm, inverse_degrees, eps, eps_inside)
    for start in range(0, fan_in, block):
        inside = start + columns < fan_in
        centred = tl.load(rows + start + columns, mask=inside, other=0).to(tl.float32) - mean
        tl.store(out + start + columns, centred / std, mask=inside)
    tl.store(mean_out + row, mean)
    tl.store(norm_out + row, norm)


@triton.jit
def _pull_back(
    grad, rows, mean_in, norm_in, pulled, fan_in, inverse_degrees, eps, eps_inside: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    grad += row * fan_in
    rows += row * fan_in
    pulled += row * fan_in
    mean, norm = tl.load(mean_in + row), tl.load(norm_in + row)
    columns = tl.arange(0, block)

    total = tl.zeros([block], tl.float32)
    along = tl.zeros([block], tl.float32)
    for start in range(0, fan_in, block):
        inside = start + columns < fan_in
        g = tl.load(grad + start + columns, mask=inside, other=0).to(tl.float32)
        centred = tl.load(rows + start + columns, mask=inside, other=0).to(tl.float32) - mean
        total += g
        along += g * centred
    mean_g = tl.sum(total) / fan_in

    std = _divisor(norm, inverse_degrees, eps, eps_inside)
    slope = inverse_degrees / std if eps_inside else tl.where(norm > 0, tl.sqrt(inverse_degrees) / norm, 0)
    factor = tl.sum(along) * slope / (std * std)
    for start in range(0, fan_in, block):
        inside = start + columns < fan_in
        g = tl.load(grad + start + columns, mask=inside, other=0).to(tl.float32)
        centred = tl.load(rows + start + columns, mask=inside, other=0).to(tl.float32) - mean
        tl.store(pulled + start + columns, (g - mean_g) / std - centred * factor, mask=inside)
