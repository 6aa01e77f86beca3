"""Segment a large image in overlapping tiles whose logits are blended.

Legend: K outputs, H x W pixels of the image, h x w of a tile.

Along each axis the weight of a tile is 0 in the outer quarter of its overlap with a neighbour, rises linearly over the
middle half, and is 1 beyond. The weights of two neighbours add up to 1. So a pixel depends on no tile whose border is
nearer than a quarter of the overlap (borders of the image aside), and the result is that of the whole image for a
network that looks no further than that. Tiles begin at multiples of `ALIGN` pixels, so that the grids of their feature
maps coincide.

Tiles are visited row by row. What is blended is final at once, except for the strips that the next tile to the right
and the tiles of the next row contribute to. These strips are all that is kept: K x (overlap / 2) x W numbers.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

ALIGN = 32
"""Output strides of common backbones divide it."""


class Span(NamedTuple):
    """A tile along one axis: pixels start to stop, fading in and out over (first, last) pixels where not None."""

    start: int
    stop: int
    fade_in: tuple[int, int] | None
    fade_out: tuple[int, int] | None

    def weights(self) -> Tensor:
        """Return the weights of the pixels of the tile, (stop - start,)."""
        weights = torch.ones(self.stop - self.start)
        if self.fade_in:
            first, last = (edge - self.start for edge in self.fade_in)
            weights[:first] = 0
            weights[first:last] = ramp(last - first)
        if self.fade_out:
            first, last = (edge - self.start for edge in self.fade_out)
            weights[first:last] = 1 - ramp(last - first)
            weights[last:] = 0
        return weights


def ramp(length: int) -> Tensor:
    """Return weights that rise linearly from 0 to 1, without either."""
    return (torch.arange(length) + 0.5) / length


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Return the tiles along an axis of `length` pixels; the last one may be up to `ALIGN` - 1 pixels shorter.

    Raises:
        ValueError: If `overlap` is not from 4 to half of `tile`.
    """
    if tile >= length:
        return [Span(0, length, None, None)]
    if not 4 <= overlap <= tile // 2:
        raise ValueError(f'overlap={overlap} of tile={tile}: 4 to {tile // 2} pixels, half of the tile, are accepted')
    align = ALIGN
    while align > max(1, (tile - overlap) // 2):
        align //= 2
    step = (tile - overlap) // align * align
    starts = [0]
    while starts[-1] + tile < length:
        shifted_back = -(-(length - tile) // align) * align
        starts.append(min(starts[-1] + step, shifted_back))
    stops = [min(start + tile, length) for start in starts]
    fades = []
    for (_, stop), (start, _) in pairwise(zip(starts, stops, strict=True)):
        middle, reach = (start + stop) // 2, overlap // 4
        fades.append((middle - reach, middle + reach))
    return [
        Span(start, stop, fade_in, fade_out)
        for start, stop, fade_in, fade_out in zip(starts, stops, [None, *fades], [*fades, None], strict=True)
    ]


class Part(NamedTuple):
    """A finished part of the image: its first row and column, and its blended logits (K, h, w)."""

    top: int
    left: int
    logits: Tensor


def blended(
    rows: list[Span],
    columns: list[Span],
    predict: Callable[[list[tuple[Span, Span]]], list[Tensor]],
    batch_size: int = 1,
) -> Iterator[Part]:
    """Yield the finished parts of an image, which cover it without overlap.

    Args:
        rows: Tiles along the height.
        columns: Tiles along the width.
        predict: Function from (row, column) of tiles of one size to their logits, each (K, h, w).
        batch_size: Tiles in one call of `predict`.
    """
    below: Tensor | None = None  # (K, rows of the fade, W): the share of the rows above in the next fade
    for row in rows:
        down = row.weights()[:, None]
        right: Tensor | None = None  # (K, h, columns of the fade): the share of the tile to the left
        for column, logits in predicted(row, columns, predict, batch_size):
            weighted = logits * column.weights().to(logits.device)
            first = column.fade_in[0] - column.start if column.fade_in else 0
            if right is not None:
                weighted[:, :, first : first + right.shape[2]] += right
            last = weighted.shape[2]
            if column.fade_out:
                last = column.fade_out[0] - column.start
                right = weighted[:, :, last : column.fade_out[1] - column.start].clone()
            done = weighted[:, :, first:last] * down.to(logits.device)
            left = column.start + first
            here = slice(left, left + done.shape[2])
            top = row.fade_in[0] - row.start if row.fade_in else 0
            if below is not None and row.fade_in:
                height = row.fade_in[1] - row.fade_in[0]
                done[:, top : top + height] += below[:, :height, here]
            bottom = done.shape[1]
            if row.fade_out:
                bottom = row.fade_out[0] - row.start
                height = row.fade_out[1] - row.fade_out[0]
                if below is None:
                    below = done.new_empty(done.shape[0], height, columns[-1].stop)
                below[:, :height, here] = done[:, bottom : bottom + height]
            yield Part(row.start + top, left, done[:, top:bottom])


def predicted(
    row: Span, columns: list[Span], predict: Callable[[list[tuple[Span, Span]]], list[Tensor]], batch_size: int
) -> Iterator[tuple[Span, Tensor]]:
    """Yield the tiles of a row with their logits; neighbours of one width are predicted together."""
    waiting: list[Span] = []
    for column in columns:
        if waiting and (len(waiting) == batch_size or column.stop - column.start != waiting[0].stop - waiting[0].start):
            yield from zip(waiting, predict([(row, one) for one in waiting]), strict=True)
            waiting = []
        waiting.append(column)
    yield from zip(waiting, predict([(row, one) for one in waiting]), strict=True)
