"""Compose pictures with captions and legends into sheets."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 4
LINE_HEIGHT = 16
MARGIN = 12
SWATCH = 12
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def captioned(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Put lines of text above a picture. Lines wider than the picture widen it."""
    font = ImageFont.load_default()
    width = max([picture.shape[1], *(math.ceil(font.getlength(line)) + GAP for line in lines)])
    height = LINE_HEIGHT * len(lines)
    page = Image.new('RGB', (width, height + picture.shape[0]), WHITE)
    page.paste(Image.fromarray(picture), (0, height))
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((2, 2 + number * LINE_HEIGHT), line, fill=BLACK, font=font)
    return np.asarray(page)


def shortened(line: str, width: int) -> str:
    """Shorten a line of text to a width in pixels by replacing its middle with dots."""
    length = ImageFont.load_default().getlength
    if length(line) + GAP <= width:
        return line
    kept = len(line)
    while kept > 2 and length(f'{line[: kept // 2]}...{line[-(kept // 2) :]}') + GAP > width:
        kept -= 1
    return f'{line[: kept // 2]}...{line[-(kept // 2) :]}'


def fitted(picture: np.ndarray, width: int) -> np.ndarray:
    """Shrink a picture to a width, or enlarge it by the largest integer factor that fits, without interpolation."""
    height, own = picture.shape[:2]
    if own <= width:
        times = width // own
        return picture.repeat(times, 0).repeat(times, 1)
    size = (width, max(round(height * width / own), 1))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def sheet(pictures: Sequence[np.ndarray], columns: int, below: np.ndarray | None = None) -> np.ndarray:
    """Arrange pictures in rows of `columns`, with margins, and one more picture below them.

    Raises:
        ValueError: If there are no pictures.
    """
    if not pictures:
        raise ValueError('a sheet needs at least one picture')
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(row[i].shape[1] for row in rows if i < len(row)) for i in range(len(rows[0]))]
    blocks = [(row, max(picture.shape[0] for picture in row)) for row in rows]
    blocks += [([below], below.shape[0])] if below is not None else []
    width = max(sum(widths) + MARGIN * (len(widths) + 1), 0 if below is None else below.shape[1] + 2 * MARGIN)
    page = np.full((sum(height + MARGIN for _, height in blocks) + MARGIN, width, 3), 255, np.uint8)
    top = MARGIN
    for row, height in blocks:
        left = MARGIN
        for picture, column in zip(row, widths, strict=False):
            page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += column + MARGIN
        top += height + MARGIN
    return page


def legend(entries: Iterable[tuple[str, Sequence[int]]], width: int) -> np.ndarray:
    """Draw names with their colours, in as many lines as a width in pixels needs."""
    font = ImageFont.load_default()
    places, left, line = [], 0, 0
    for name, colour in entries:
        length = SWATCH + GAP + math.ceil(font.getlength(name)) + MARGIN
        if left and left + length > width:
            left, line = 0, line + 1
        places.append((left, line * LINE_HEIGHT, name, colour))
        left += length
    page = Image.new('RGB', (width, (line + 1) * LINE_HEIGHT), WHITE)
    draw = ImageDraw.Draw(page)
    for left, top, name, colour in places:
        draw.rectangle((left, top + 2, left + SWATCH, top + 2 + SWATCH), fill=tuple(colour), outline=BLACK)
        draw.text((left + SWATCH + GAP, top + 2), name, fill=BLACK, font=font)
    return np.asarray(page)


def denormalised(inputs: Tensor, preprocessor: Any) -> Tensor:
    """Convert a model's input, (3, ...), back to bytes.

    Args:
        inputs: One sample of the preprocessor's output. Bytes, which the model normalises itself, do not change.
        preprocessor: Has `mean` and `std` of the shape (3, 1, ...), unless it does not normalise.
    """
    if inputs.dtype == torch.uint8:
        return inputs
    if hasattr(preprocessor, 'mean'):
        inputs = inputs * preprocessor.std + preprocessor.mean
    return inputs.round().clamp(0, 255).to(torch.uint8)
