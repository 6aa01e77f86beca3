"""Segmentation scenes: digits on photographs, in the layout of Cityscapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from projects.toy_data.appearance import (
    PHOTOGRAPHS,
    SPLITS,
    contrasting_ink,
    expose,
    illumination,
    photo_crop,
    split_digits,
    warp_digit,
)

IGNORE = 255
MAX_PLACEMENTS = 30


def seg_palette(digits: Sequence[int] = range(10)) -> list[list[int]]:
    """Return an RGB colour for the background and for each digit; a digit has the same colour in every selection."""
    colours = [[230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]]
    colours += [[145, 30, 180], [70, 240, 240], [240, 50, 230], [170, 110, 40], [210, 245, 60]]
    return [[40, 40, 40], *(colours[digit] for digit in digits)]


def _place(rng: np.random.Generator, taken: list[tuple[float, float, float]], canvas: int, side: float):
    """Return a centre at which a digit of `side` overlaps no digit of `taken`; None if no room was found."""
    margin = side * 0.45
    for _ in range(MAX_PLACEMENTS):
        x, y = rng.uniform(margin, canvas - 1 - margin, 2)
        if all(max(abs(x - u), abs(y - v)) > 0.42 * (side + other) for u, v, other in taken):
            return x, y
    return None


def draw_scene(
    rng: np.random.Generator,
    digits: dict[int, np.ndarray],
    split: str,
    photo: str,
    size: int,
    digit_size: tuple[int, int],
    digits_per_scene: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene and its labels.

    Labels: 0 for the background, i + 1 for the i-th key of `digits`, 255 (ignored) on the anti-aliased border of a
    digit.

    Returns:
        RGB image (size, size, 3) uint8 and labels (size, size) uint8.
    """
    background = photo_crop(rng, photo, split, size)
    scene = 0.5 + (background - background.mean()) * rng.uniform(0.35, 0.7) + rng.uniform(-0.2, 0.2)
    scene = np.clip(scene, 0, 1)
    labels = np.zeros((size, size), np.uint8)
    classes = list(digits)
    taken: list[tuple[float, float, float]] = []
    for _ in range(rng.integers(digits_per_scene[0], digits_per_scene[1] + 1)):
        side = float(np.exp(rng.uniform(*np.log(digit_size))))
        center = _place(rng, taken, size, side)
        if center is None:
            continue
        taken.append((*center, side))
        index = int(rng.integers(len(classes)))
        pool = digits[classes[index]]
        cover = warp_digit(pool[rng.integers(len(pool))], center, side, rng.uniform(-12, 12), size)
        ink = contrasting_ink(rng, scene[cover > 0.02])
        scene = scene + cover[..., None] * (ink - scene)
        labels[cover > 0.15] = IGNORE
        labels[cover > 0.75] = index + 1
    return expose(scene, illumination(rng, size)), labels


def write_segmentation(
    folder: Path,
    *,
    n_train: int,
    n_val: int,
    size: int,
    digit_size: tuple[int, int],
    digits_per_scene: tuple[int, int],
    digits: Sequence[int],
    seed: int,
    advance: Callable[[], None],
) -> None:
    """Write all scenes below `folder` and call `advance` after each. The cities are the two photographs."""
    for split, count in zip(SPLITS, (n_train, n_val), strict=True):
        pool = split_digits(split, digits, seed)
        for index in range(count):
            rng = np.random.default_rng([seed, SPLITS.index(split), index])
            city = PHOTOGRAPHS[index % len(PHOTOGRAPHS)]
            image, labels = draw_scene(rng, pool, split, city, size, digit_size, digits_per_scene)
            stem = f'{city}_{index // len(PHOTOGRAPHS):06d}_000001'
            for kind, suffix, picture in (
                ('leftImg8bit', 'leftImg8bit', image[..., ::-1]),
                ('gtFine', 'gtFine_labelTrainIds', labels),
            ):
                path = folder / kind / split / city / f'{stem}_{suffix}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
                    raise OSError(f'cannot write {path}')
            advance()
