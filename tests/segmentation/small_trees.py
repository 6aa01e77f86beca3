"""Cityscapes, VOC and SBD as their archives unpack, with a few small images."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CITIES = {'train': ('aachen', 'bochum'), 'val': ('lindau',), 'test': ('berlin',)}
SIZE = (12, 24)


def label_ids(seed: int) -> np.ndarray:
    """Raw Cityscapes labels: 1 (ego vehicle) in the first row, then all 34 values in turn from a random start."""
    height, width = SIZE
    start = np.random.default_rng(seed).integers(34)
    label = (start + np.arange(height * width)).reshape(SIZE) % 34
    label[0] = 1
    return label.astype(np.uint8)


def cityscapes_tree(root: Path) -> dict[str, int]:
    """Write two images of each city; the test labels are dummies. Return the number of images of each split."""
    rng = np.random.default_rng(0)
    counts = {}
    for split, cities in CITIES.items():
        for city in cities:
            image_dir, label_dir = root / 'leftImg8bit' / split / city, root / 'gtFine' / split / city
            image_dir.mkdir(parents=True)
            label_dir.mkdir(parents=True)
            for number in range(2):
                name = f'{city}_00000{number}_000019'
                pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(image_dir / f'{name}_leftImg8bit.png')
                label = np.ones(SIZE, np.uint8) if split == 'test' else label_ids(number)
                Image.fromarray(label).save(label_dir / f'{name}_gtFine_labelIds.png')
                Image.fromarray(pixels).save(label_dir / f'{name}_gtFine_color.png')
        counts[split] = 2 * len(cities)
    return counts


VOC_NAMES = {'train': ('2007_000032',), 'val': ('2007_000039', '2007_000063')}
SBD_NAMES = {'train': ('2008_000002', '2007_000032'), 'val': ('2007_000039', '2009_000001')}
"""Two of SBD's images are in VOC too."""


def voc_label(border: int) -> np.ndarray:
    label = np.full((20, 30), border, np.uint8)
    label[2:-2, 2:-2] = 0
    label[5:10, 5:20] = 20
    return label


def voc_tree(root: Path) -> dict[str, int]:
    """Write `VOCdevkit/` and `benchmark_RELEASE/` below a folder. Return the number of images of each split."""
    voc, sbd = root / 'VOCdevkit' / 'VOC2012', root / 'benchmark_RELEASE' / 'dataset'
    for folder in (voc / 'JPEGImages', voc / 'SegmentationClass', voc / 'ImageSets' / 'Segmentation', sbd / 'cls'):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in {name for names in (VOC_NAMES, SBD_NAMES) for split in names.values() for name in split}:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(voc / 'JPEGImages' / f'{name}.jpg')
    for split, names in VOC_NAMES.items():
        (voc / 'ImageSets' / 'Segmentation' / f'{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            picture = Image.fromarray(voc_label(255)).convert('P')
            picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tolist())
            picture.save(voc / 'SegmentationClass' / f'{name}.png')
    for split, names in SBD_NAMES.items():
        (sbd / f'{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            content = dict(Boundaries=0, Segmentation=voc_label(0), CategoriesPresent=[20])
            savemat(sbd / 'cls' / f'{name}.mat', dict(GTcls=content))
    return dict(train=1, val=2, aug=2)
