"""Pictures of a segmented image: the image, the classes over it, a heading and a legend."""

from pathlib import Path

import cv2
import numpy as np

from ...engine.inference.drawing import Entry, beside, heading, legend, stacked, text_size
from ..evaluation.overlays import colourise
from .results import SegmentationResult

LONGEST, SHORTEST = 2048, 448
"""Sides of a panel in pixels; larger images are drawn smaller, smaller ones a whole number of times larger."""

NARROWEST = 480
"""Width of a picture in pixels at least, for its heading and its legend."""

WIDE = 1.6
"""Images wider than this many times their height stand above each other."""


def overlay(result: SegmentationResult, opacity: float = 0.6) -> np.ndarray:
    """Return the image beside the predicted classes over it, under a heading and above a legend.

    Args:
        result: Of one image.
        opacity: How much of the colours covers the image, 0 to 1.

    Returns:
        (h, w, 3), uint8, RGB.

    Raises:
        ValueError: For an opacity outside [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity={opacity!r}: a number from 0 to 1 is expected')
    image, labels = at_panel_size(result.image, result.class_map)
    colours = colourise(labels, result.palette)
    covered = cv2.addWeighted(colours, opacity, image, 1 - opacity, 0)
    gap = 8
    wide = image.shape[1] > WIDE * image.shape[0]
    panels = stacked([image, covered], gap) if wide else beside([image, covered], gap)
    width = max(panels.shape[1], NARROWEST)
    size = text_size(width)
    height, original_width = result.class_map.shape
    facts = [f'{original_width} x {height} pixels', *result.notes]
    entries = [
        Entry(f'{one.name}  {percent(one.share)}  score {one.score:.2f}', result.palette[one.class_id])
        for one in result.classes
    ]
    title = Path(result.source).name if result.source else 'array'
    return stacked([heading(title, ', '.join(facts), width, size), panels, legend(entries, width, size)])


def at_panel_size(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its labels in the size of a panel."""
    height, width = labels.shape
    longest = max(height, width)
    if longest > LONGEST:
        # Every other pixel, or fewer, of an image much larger: resizing copies what it is given.
        every = max(longest // (2 * LONGEST), 1)
        image, labels = image[::every, ::every], labels[::every, ::every]
        size = (max(round(width * LONGEST / longest), 1), max(round(height * LONGEST / longest), 1))
        return (
            cv2.resize(image, size, interpolation=cv2.INTER_AREA),
            cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST),
        )
    times = max(SHORTEST // longest, 1)
    return image.repeat(times, 0).repeat(times, 1), labels.repeat(times, 0).repeat(times, 1)


def percent(share: float) -> str:
    """Return '12.3 %', and '< 0.1 %' for what would be rounded to nothing."""
    return '< 0.1 %' if share < 0.0005 else f'{100 * share:.1f} %'
