"""Draw samples of a recipe's data as its model receives them, after loading, augmentation and preprocessing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from ..resume.order import ORDER, seed_of, seeded
from .sheets import sheet

PER_SHEET = 16


class Drawing(Protocol):
    """How a task draws its samples: `evaluation/browsing.py` of `segmentation` and of `video`."""

    COLUMNS: int
    """Samples in a row of a sheet."""

    def draw(self, sample: Any, preprocessor: Any, metainfo: Mapping[str, Any], training: bool) -> np.ndarray:
        """Draw a packed sample after the preprocessor, with a caption."""

    def key(self, metainfo: Mapping[str, Any], width: int) -> np.ndarray | None:
        """Draw the legend of the colours, which goes below the sheet."""


def browse(cfg: Config, drawing: Drawing, split: str, number: int, folder: Path, seed: int = 0) -> Iterator[Path]:
    """Draw samples of a recipe's data as its model receives them, and save 16 to a PNG.

    Args:
        cfg: A recipe.
        drawing: How its task draws samples.
        split: 'train' or 'val'.
        number: Number of samples, drawn at random; all if the dataset has fewer.
        folder: Folder of the sheets; created if missing.
        seed: Seed of the choice and of the augmentation.

    Yields:
        The files: `<split>_00.png`, `<split>_01.png`, ...

    Raises:
        ValueError: If `number` is below 1.
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
