"""The result of recognising one clip, or a long video in windows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class ClassScore(NamedTuple):
    """A class with its probability."""

    class_id: int
    name: str
    score: float


def best(scores: np.ndarray, names: tuple[str, ...], number: int) -> list[ClassScore]:
    """Return the classes with the highest of (K,) scores, the highest first; of equal ones, the first label."""
    order = np.argsort(-scores, kind='stable')[:number]
    return [ClassScore(int(label), names[label], float(scores[label])) for label in order]


@dataclass(frozen=True, eq=False)
class ClipResult:
    """What the model found in one clip.

    Attributes:
        source: The video file or folder of images; None for an array.
        class_names: In label order.
        scores: (K,), float32, probability of each class, the mean over the views.
        frames: (T, H, W, 3), uint8, RGB: the first view, as the model is fed.
        notes: What the decoder said about damage, one line each.
    """

    source: str | None
    class_names: tuple[str, ...]
    scores: np.ndarray
    frames: np.ndarray
    notes: tuple[str, ...] = ()

    def top(self, number: int = 5) -> list[ClassScore]:
        """Return the classes with the highest scores, the highest first."""
        return best(self.scores, self.class_names, number)

    @property
    def label(self) -> int:
        """Label of the class with the highest score."""
        return int(self.scores.argmax())

    @property
    def name(self) -> str:
        """Name of the class with the highest score."""
        return self.class_names[self.label]

    def __str__(self) -> str:
        return f'{self.source or "array"}: {", ".join(f"{one.name} {one.score:.2f}" for one in self.top(3))}'

    def __repr__(self) -> str:
        return f'ClipResult({self})'


class Window(NamedTuple):
    """The best classes of a part of a video, from `start` to `end` seconds."""

    start: float
    end: float
    classes: list[ClassScore]


@dataclass(frozen=True, eq=False)
class WindowsResult:
    """What the model found in each window of a long video.

    Attributes:
        source: The video file or folder of images; None for an array.
        class_names: In label order.
        fps: Frames per second.
        total_frames: Frames of the video.
        first_frames: (N,), number of each window's first frame.
        window_frames: Frames of a window.
        scores: (N, K), float32, probability of each class in each window.
        frames: (N, H, W, 3), uint8, RGB: the middle frame of each window, as the model is fed.
        notes: What the decoder said about damage, one line each.
    """

    source: str | None
    class_names: tuple[str, ...]
    fps: float
    total_frames: int
    first_frames: np.ndarray
    window_frames: int
    scores: np.ndarray
    frames: np.ndarray
    notes: tuple[str, ...] = ()

    def windows(self, number: int = 1) -> Iterator[Window]:
        """Yield each window with its best classes."""
        for first, scores in zip(self.first_frames, self.scores, strict=True):
            end = min(first + self.window_frames, self.total_frames)
            yield Window(float(first / self.fps), float(end / self.fps), best(scores, self.class_names, number))

    def window_at(self, frame: int) -> int:
        """Return the number of the window whose middle is nearest to a frame."""
        middles = self.first_frames + self.window_frames / 2
        return int(np.abs(middles - frame - 0.5).argmin())

    def __str__(self) -> str:
        names, counts = np.unique(self.scores.argmax(axis=1), return_counts=True)
        order = np.argsort(-counts, kind='stable')[:3]
        common = ', '.join(f'{self.class_names[names[i]]} in {counts[i]}' for i in order)
        seconds = self.total_frames / self.fps
        return f'{self.source or "array"}, {seconds:.1f} s in {len(self.scores)} windows: {common}'

    def __repr__(self) -> str:
        return f'WindowsResult({self})'
