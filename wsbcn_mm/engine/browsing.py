"""Sheets of what a recipe's model is fed, after loading, augmentation and preprocessing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from .pictures import sheet
from .random_numbers import ORDER, seed_of, seeded

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
