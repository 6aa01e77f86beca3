"""The parts of scenes and clips: handwritten digits, photographs, and illumination."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import cv2
import numpy as np
from sklearn.datasets import load_digits, load_sample_image

PHOTOGRAPHS = ('china', 'flower')
SPLITS = ('train', 'val')
VAL_DIGIT_SHARE = 0.2
TRAIN_PHOTO_SHARE = 0.7


@cache
def photograph(name: str) -> np.ndarray:
    """Return one of scikit-learn's photographs, (427, 640, 3) float32 RGB in [0, 1]."""
    return load_sample_image(f'{name}.jpg').astype(np.float32) / 255


def split_digits(split: str, classes: Sequence[int], seed: int) -> dict[int, np.ndarray]:
    """Return the handwritten digits of a split: class -> (N, 8, 8) float32 ink in [0, 1].

    One fifth of scikit-learn's 1797 digits is kept for validation; no digit is in both splits.
    """
    images, targets = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    n_val = round(len(images) * VAL_DIGIT_SHARE)
    chosen = order[:n_val] if split == 'val' else order[n_val:]
    ink = images[chosen].reshape(-1, 8, 8).astype(np.float32) / 16
    return {digit: ink[targets[chosen] == digit] for digit in classes}


def photo_crop(rng: np.random.Generator, name: str, split: str, size: int) -> np.ndarray:
    """Return a random square crop (size, size, 3): from the left 70 % of a photograph for train, the rest for val."""
    photo = photograph(name)
    border = round(photo.shape[1] * TRAIN_PHOTO_SHARE)
    photo = photo[:, border:] if split == 'val' else photo[:, :border]
    side = int(rng.integers(96, min(photo.shape[:2]) + 1))
    top = int(rng.integers(photo.shape[0] - side + 1))
    left = int(rng.integers(photo.shape[1] - side + 1))
    crop = cv2.resize(photo[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def warp_digit(ink: np.ndarray, center: tuple[float, float], side: float, angle: float, canvas: int) -> np.ndarray:
    """Draw an 8x8 digit on an empty canvas, bilinearly enlarged, with an edge about one pixel wide.

    Args:
        ink: (8, 8) in [0, 1].
        center: x and y of the digit's middle, in pixels; may be outside the canvas.
        side: Width and height of the digit's 8x8 cell, in pixels.
        angle: Rotation in degrees, clockwise on the screen.
        canvas: Width and height of the canvas, in pixels.

    Returns:
        Coverage, (canvas, canvas) float32 in [0, 1].
    """
    scale = side / 8
    matrix = cv2.getRotationMatrix2D((3.5, 3.5), -angle, scale)
    matrix[:, 2] += np.asarray(center) - 3.5
    enlarged = cv2.warpAffine(ink, matrix, (canvas, canvas), flags=cv2.INTER_LINEAR)
    return np.clip(0.5 + (enlarged - 0.45) * scale / 1.2, 0, 1)


def contrasting_ink(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    """Return a colour (3,) clearly lighter or darker than the background's mean, at random if both are possible."""
    level = float(background.mean())
    choices = [sign for sign in (-1, 1) if 0.05 < level + sign * 0.45 < 0.95]
    sign = choices[rng.integers(len(choices))] if choices else (1 if level < 0.5 else -1)
    tint = rng.uniform(-0.12, 0.12, 3)
    return np.clip(level + sign * rng.uniform(0.45, 0.65) + tint, 0, 1).astype(np.float32)


def illumination(rng: np.random.Generator, size: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Draw the light and the camera setting of one image or clip: exponent, multiplicative field, additive offset.

    The contrast is log-uniform in [0.2, 1] and placed uniformly in the range of values. Each colour has its own gain.
    The light falls off smoothly in a random direction. Two images of a set therefore differ far more in mean and
    standard deviation than two crops of one photograph.

    Returns:
        The exponent, the field (size, size, 3) and the offset (3,), for `expose`.
    """
    gamma = float(np.exp(rng.uniform(-0.5, 0.5)))
    contrast = float(np.exp(rng.uniform(np.log(0.2), 0)))
    direction = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope = (np.cos(direction) * ramp[None, :] + np.sin(direction) * ramp[:, None]) / np.sqrt(2)
    field = 1 + rng.uniform(0, 0.7) * slope
    colour = np.exp(rng.uniform(-0.2, 0.2, 3))
    offset = rng.uniform(0, 1 - contrast) + rng.uniform(-0.04, 0.04, 3)
    return gamma, (contrast * field[..., None] * colour).astype(np.float32), offset.astype(np.float32)


def expose(scene: np.ndarray, light: tuple[float, np.ndarray, np.ndarray], flicker: float = 1.0) -> np.ndarray:
    """Expose a scene (size, size, 3) float in [0, 1] to uint8; values beyond the sensor's range saturate."""
    gamma, field, offset = light
    exposed = (scene**gamma * field + offset) * flicker
    return (np.clip(exposed, 0, 1) * 255 + 0.5).astype(np.uint8)
