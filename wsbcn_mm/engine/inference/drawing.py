"""Headings, legends and bars for pictures of predictions, in a size that suits the picture."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BLACK, GREY, WHITE = (0, 0, 0), (235, 235, 235), (255, 255, 255)
BAR = (150, 190, 235)


class Entry(NamedTuple):
    """A line of a legend; without a colour it has no swatch, and with a share a bar of that length."""

    text: str
    colour: Sequence[int] | None = None
    share: float | None = None


EAST_ASIAN = 0x2E80
"""First character that the font of matplotlib lacks."""

EAST_ASIAN_FONTS = ('NotoSansCJK-Regular.ttc', 'wqy-zenhei.ttc', 'wqy-microhei.ttc', 'msyh.ttc', 'PingFang.ttc')
"""Fonts of operating systems, looked for where class names need them."""


def font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font that has the characters of a text, in a size in pixels."""
    return _font(size, any(ord(character) >= EAST_ASIAN for character in text))


@lru_cache
def _font(size: int, east_asian: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    matplotlib = find_spec('matplotlib')
    # Pillow's own font has no letters with accents.
    own = Path(str(matplotlib and matplotlib.origin)).with_name('mpl-data') / 'fonts/ttf/DejaVuSans.ttf'
    for name in [*(EAST_ASIAN_FONTS if east_asian else ()), str(own)]:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def text_size(width: int) -> int:
    """Return a font size for a page of so many pixels."""
    return min(max(width // 52, 13), 28)


def fitting(text: str, width: float, size: int) -> str:
    """Return a text that fits a width in pixels, with its middle left out where it is longer."""
    length = font(text, size).getlength
    if length(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and length(f'{text[: kept // 2]}...{text[-(kept // 2) :]}') > width:
        kept -= 1
    return f'{text[: kept // 2]}...{text[-(kept // 2) :]}'


def heading(title: str, detail: str, width: int, size: int) -> np.ndarray:
    """Return a title with a detail in grey below it, (h, width, 3)."""
    line, margin = size * 3 // 2, size // 2
    page = Image.new('RGB', (width, 2 * line + margin), WHITE)
    draw = ImageDraw.Draw(page)
    draw.text((margin, margin), fitting(title, width - 2 * margin, size), fill=BLACK, font=font(title, size))
    small = max(size * 5 // 6, 11)
    detail = fitting(detail, width - 2 * margin, small)
    draw.text((margin, margin + line), detail, fill=(110,) * 3, font=font(detail, small))
    return np.asarray(page)


def legend(entries: Iterable[Entry], width: int, size: int) -> np.ndarray:
    """Return swatches with texts, in as many columns as fit, (h, width, 3)."""
    listed, margin, line = list(entries), size // 2, size * 3 // 2
    room = width - 2 * margin
    widest = max([font(entry.text, size).getlength(entry.text) for entry in listed], default=0)
    column = min(room, math.ceil(widest) + 3 * size)
    columns = max(room // max(column, 1), 1)
    rows = -(-len(listed) // columns)
    page = Image.new('RGB', (width, rows * line + 2 * margin), WHITE)
    draw = ImageDraw.Draw(page)
    for number, entry in enumerate(listed):
        left, top = margin + number % columns * column, margin + number // columns * line
        if entry.colour is not None:
            draw.rectangle((left, top, left + size, top + size), fill=tuple(entry.colour), outline=BLACK)
        draw.text(
            (left + size * 3 // 2, top + size // 2),
            fitting(entry.text, column - 2 * size, size),
            fill=BLACK,
            font=font(entry.text, size),
            anchor='lm',
        )
    return np.asarray(page)


def bars(entries: Sequence[Entry], width: int, size: int) -> np.ndarray:
    """Return texts over bars as long as their shares, one a line, (h, width, 3)."""
    margin, line = size // 2, size * 3 // 2 + 2
    page = Image.new('RGB', (width, len(entries) * line + 2 * margin), WHITE)
    draw = ImageDraw.Draw(page)
    for number, (text, colour, share) in enumerate(entries):
        top, right = margin + number * line, width - margin
        draw.rectangle((margin, top, right, top + line - 3), fill=GREY)
        end = margin + round((right - margin) * (share or 0))
        if end > margin:
            draw.rectangle((margin, top, end, top + line - 3), fill=tuple(colour or BAR))
        draw.text(
            (2 * margin, top + line // 2 - 1),
            fitting(text, width - 4 * margin, size),
            fill=BLACK,
            font=font(text, size),
            anchor='lm',
        )
    return np.asarray(page)


def stacked(blocks: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Return pictures below each other, left-aligned on white."""
    width = max(block.shape[1] for block in blocks)
    height = sum(block.shape[0] for block in blocks) + gap * (len(blocks) - 1)
    page, top = np.full((height, width, 3), 255, np.uint8), 0
    for block in blocks:
        page[top : top + block.shape[0], : block.shape[1]] = block
        top += block.shape[0] + gap
    return page


def beside(blocks: Sequence[np.ndarray], gap: int = 0) -> np.ndarray:
    """Return pictures beside each other, top-aligned on white."""
    return stacked([block.swapaxes(0, 1) for block in blocks], gap).swapaxes(0, 1)
