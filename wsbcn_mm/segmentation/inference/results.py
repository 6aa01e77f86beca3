"""The result of segmenting one image."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor


class ClassShare(NamedTuple):
    """What a result has of one class.

    Attributes:
        class_id: Its label.
        name: Its name.
        pixels: Pixels that are predicted as this class.
        share: The same as a part of the image.
        score: Mean probability of the class over these pixels.
    """

    class_id: int
    name: str
    pixels: int
    share: float
    score: float


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """What the model found in one image of H x W pixels.

    Attributes:
        source: The image file; None for an array.
        image: (H, W, 3), uint8, RGB, as the recipe loads it.
        class_map: (H, W), label of each pixel; uint8, or uint16 with more than 256 classes.
        class_names: In label order.
        palette: One RGB colour for each class.
        pixels: (K,), pixels of each class.
        scores: (K,), mean probability of each class over its pixels; nan for a class without pixels.
        confidence: (H, W), float32, probability of the predicted class; None for an image in tiles.
        logits: (K, H, W) if asked for; a sigmoid's probabilities (1, H, W) for a model with one output.
        tiles: Number of tiles; 1 for a whole image.
        notes: What a person should know, one line each.
    """

    source: str | None
    image: np.ndarray
    class_map: np.ndarray
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    pixels: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray | None = None
    logits: Tensor | None = None
    tiles: int = 1
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> list[ClassShare]:
        """The classes that occur, the largest first."""
        order = [int(label) for label in np.argsort(-self.pixels, kind='stable') if self.pixels[label]]
        return [
            ClassShare(
                label,
                self.class_names[label],
                int(self.pixels[label]),
                float(self.pixels[label] / self.class_map.size),
                float(self.scores[label]),
            )
            for label in order
        ]

    def __str__(self) -> str:
        height, width = self.class_map.shape
        found = ', '.join(f'{one.name} {one.share:.1%} (score {one.score:.2f})' for one in self.classes)
        return f'{self.source or "array"}, {width} x {height}: {found}'

    def __repr__(self) -> str:
        return f'SegmentationResult({self})'


class ClassSums:
    """Pixels and summed probabilities of each class, over one or more parts of an image."""

    def __init__(self, num_classes: int) -> None:
        self.pixels = np.zeros(num_classes, np.int64)
        self._total = np.zeros(num_classes)

    def add(self, class_map: np.ndarray, confidence: np.ndarray) -> None:
        """Count a part: labels and the probabilities of these labels, of the same shape."""
        labels = class_map.ravel()
        self.pixels += np.bincount(labels, minlength=len(self.pixels))
        self._total += np.bincount(labels, weights=confidence.ravel(), minlength=len(self.pixels))

    def scores(self) -> np.ndarray:
        """Return the mean probability of each class; nan for a class without pixels."""
        return np.divide(self._total, self.pixels, out=np.full(len(self.pixels), np.nan), where=self.pixels > 0)
