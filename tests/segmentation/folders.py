"""Small folders of images and masks, as people have them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 16)
COLOURS = np.array([[0, 0, 0], [128, 64, 128], [220, 20, 60]], np.uint8)

NAMES = {'train': ('a', 'b', 'c', 'd'), 'val': ('e', 'f')}


def labels(seed: int) -> np.ndarray:
    """Classes 0 to 2, (H, W) uint8, with a rectangle of each."""
    label = np.zeros(SIZE, np.uint8)
    label[2:5, 2 + seed % 4 : 8] = 1
    label[7:10, 5 : 9 + seed % 4] = 2
    return label


def save_image(file: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    return file


def save_mask(file: Path, label: np.ndarray, mode: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(label)
    if mode == 'P':
        picture.putpalette(COLOURS.ravel().tolist())
    picture.save(file)
    return file


def write_folder(
    root: Path,
    classes: str = 'floor\nroad\ncar\n',
    draw: Callable[[np.ndarray], np.ndarray] = lambda label: label,
    layout: str = '{kind}/{split}/{name}',
    suffix: str = '.png',
    names: Mapping[str, tuple[str, ...]] = NAMES,
) -> Path:
    """Four images to train and two to validate; `draw` makes the mask of the classes."""
    for split, own in names.items():
        for name in own:
            place = {kind: layout.format(kind=kind, split=split, name=name) for kind in ('images', 'masks')}
            save_image(root / f'{place["images"]}{suffix}', ord(name))
            save_mask(root / f'{place["masks"]}.png', draw(labels(ord(name))))
    (root / 'classes.txt').write_text(classes)
    return root
