"""Sheets of what a recipe's model is fed, after loading, augmentation and preprocessing."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..resume.seeds import ORDER, seed_of, seeded

GAP = 4
LINE_HEIGHT = 16
MARGIN = 12
SWATCH = 12
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def captioned(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Lines of text above a picture, which they widen where they are longer."""
    font = ImageFont.load_default()
    width = max([picture.shape[1], *(math.ceil(font.getlength(line)) + GAP for line in lines)])
    height = LINE_HEIGHT * len(lines)
    page = Image.new('RGB', (width, height + picture.shape[0]), WHITE)
    page.paste(Image.fromarray(picture), (0, height))
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((2, 2 + number * LINE_HEIGHT), line, fill=BLACK, font=font)
    return np.asarray(page)


def shortened(line: str, width: int) -> str:
    """A line of text that fits a width in pixels, its middle left out if it must be."""
    length = ImageFont.load_default().getlength
    if length(line) + GAP <= width:
        return line
    kept = len(line)
    while kept > 2 and length(f'{line[: kept // 2]}...{line[-(kept // 2) :]}') + GAP > width:
        kept -= 1
    return f'{line[: kept // 2]}...{line[-(kept // 2) :]}'


def fitted(picture: np.ndarray, width: int) -> np.ndarray:
    """A picture made smaller to a width, or enlarged a whole number of times towards it with its pixels kept apart."""
    height, own = picture.shape[:2]
    if own <= width:
        times = width // own
        return picture.repeat(times, 0).repeat(times, 1)
    size = (width, max(round(height * width / own), 1))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def sheet(pictures: Sequence[np.ndarray], columns: int, below: np.ndarray | None = None) -> np.ndarray:
    """Pictures in rows of `columns`, with margins, and one more picture below them.

    Raises:
        ValueError: Without a picture.
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
    """Names with their colours, in as many lines as a width in pixels needs."""
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
    """What a model is fed, (3, ...), back in bytes.

    Args:
        inputs: One sample of the preprocessor's output; bytes, which the model normalises itself, stay as they are.
        preprocessor: Has `mean` and `std` of the shape (3, 1, ...), unless it does not normalise.
    """
    if inputs.dtype == torch.uint8:
        return inputs
    if hasattr(preprocessor, 'mean'):
        inputs = inputs * preprocessor.std + preprocessor.mean
    return inputs.round().clamp(0, 255).to(torch.uint8)


PER_SHEET = 16


class Drawing(Protocol):
    """How a task draws its samples; `browsing` of `segmentation` and of `video`."""

    COLUMNS: int
    """Samples beside each other on a sheet."""

    def draw(self, sample: Any, preprocessor: Any, metainfo: Mapping[str, Any], training: bool) -> np.ndarray:
        """A packed sample after the preprocessor, with a caption."""

    def key(self, metainfo: Mapping[str, Any], width: int) -> np.ndarray | None:
        """What the colours mean, for below the sheet."""


def browse(cfg: Config, drawing: Drawing, split: str, number: int, folder: Path, seed: int = 0) -> Iterator[Path]:
    """Draw samples of a recipe's data as its model sees them, and save them, 16 to a PNG.

    Args:
        cfg: A recipe.
        drawing: How its task draws samples.
        split: 'train' or 'val'.
        number: Samples, drawn at random; all if there are fewer.
        folder: For the sheets, made if missing.
        seed: Of the choice and of the augmentation.

    Yields:
        The files, `<split>_00.png` and so on.

    Raises:
        ValueError: For a number below 1.
    """
    if number < 1:
        raise ValueError(f'number={number}: at least 1 sample is needed')
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    training = split == 'train'
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:number].tolist()
    folder.mkdir(parents=True, exist_ok=True)
    for page, start in enumerate(range(0, len(chosen), PER_SHEET)):
        pictures = []
        for index in chosen[start : start + PER_SHEET]:
            with seeded(seed_of(ORDER, seed, index)):
                pictures.append(drawing.draw(dataset[index], preprocessor, dataset.metainfo, training))
        width = max(picture.shape[1] for picture in pictures) * min(drawing.COLUMNS, len(pictures))
        file = folder / f'{split}_{page:02d}.png'
        Image.fromarray(sheet(pictures, drawing.COLUMNS, drawing.key(dataset.metainfo, width))).save(file)
        yield file
