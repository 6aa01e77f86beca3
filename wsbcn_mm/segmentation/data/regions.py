"""Regions of annotation files as pixels: polygons, circles, run lengths.

Coordinates are those of labelme, CVAT and COCO: the first pixel reaches from 0 to 1. A pixel belongs to a region if its
centre does.
"""

import math
from collections.abc import Sequence

import numpy as np

CIRCLE_POINTS = 180


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels inside a polygon, (H, W) bool, by the even-odd rule; parts outside the image are cut off.

    Args:
        points: Corners (x, y), (N, 2), N >= 3. The last one is joined to the first.
        height: Of the image, pixels.
        width: Of the image, pixels.
    """
    x_start, y_start = np.asarray(points, np.float64).T
    x_end, y_end = np.roll(x_start, -1), np.roll(y_start, -1)
    # Row r crosses an edge if its centre, r + 1/2, is between the ends.
    first = np.clip(np.ceil(np.minimum(y_start, y_end) - 0.5), 0, height).astype(int)
    behind = np.clip(np.ceil(np.maximum(y_start, y_end) - 0.5), 0, height).astype(int)
    rows_of_edge = behind - first
    edges = np.repeat(np.arange(len(first)), rows_of_edge)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(rows_of_edge) - rows_of_edge, rows_of_edge) + first[edges]
    share = (rows + 0.5 - y_start[edges]) / (y_end - y_start)[edges]
    crossings = x_start[edges] + share * (x_end - x_start)[edges]
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
    # Each crossing turns all pixels to its right over.
    turns = np.zeros((height, width + 1), np.uint8)
    np.add.at(turns, (rows, columns), 1)
    return np.cumsum(turns[:, :width], axis=1, dtype=np.uint8) % 2 == 1


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> np.ndarray:
    """Return corners (x, y), (N, 2), of an ellipse around a centre, turned clockwise as images are shown."""
    angles = np.linspace(0, 2 * math.pi, CIRCLE_POINTS, endpoint=False)
    return turned(np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], -1), degrees)


def rectangle(left: float, top: float, right: float, bottom: float, degrees: float = 0.0) -> np.ndarray:
    """Return corners (x, y), (4, 2), of a rectangle, turned about its centre, clockwise as images are shown."""
    return turned(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64), degrees)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Return points (N, 2) turned about the middle of their extent, clockwise as images are shown."""
    if not degrees:
        return points
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    moved: np.ndarray = (points - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre
    return moved


def from_run_lengths(counts: Sequence[int], height: int, width: int, *, by_column: bool) -> np.ndarray:
    """Return pixels (H, W) bool of run lengths, which begin with one of pixels outside.

    Args:
        counts: Lengths of the runs.
        height: Of the pixels.
        width: Of the pixels.
        by_column: Whether runs go down the columns, as in COCO, or along the rows, as in CVAT.

    Raises:
        ValueError: If the runs do not fill the pixels.
    """
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f'run lengths of {sum(counts)} pixels: {height} x {width} = {height * width} are accepted')
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width, height).T if by_column else values.reshape(height, width)


def decompressed(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed form, `rleFrString` in `maskApi.c` of cocoapi.

    Each number is written in groups of 5 bits from the lowest up, in characters from '0' on, of which bit 6 says that
    another follows and the highest bit of the last is the sign. From the fourth on they are differences to the number
    two before.

    Raises:
        ValueError: For a text that ends within a number or has other characters.
    """
    counts: list[int] = []
    number, bits = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f'counts={text[:20]!r}: compressed run lengths of COCO are accepted')
        number |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            number -= 1 << bits
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, bits = 0, 0
    if bits:
        raise ValueError(f'counts={text[:20]!r}: compressed run lengths of COCO are accepted, and these break off')
    return counts
