"""Files of segmented images: overlays, class ids, and what they hold in numbers."""

from pathlib import Path
from typing import Any

from PIL import Image

from .pictures import overlay
from .results import SegmentationResult
from .segmenter import Segmenter

OVERLAYS, CLASS_IDS = 'overlays', 'class_ids'
FOLDERS = (OVERLAYS, CLASS_IDS)
"""Below the folder of a run."""

OPTIONS = ('opacity', 'pictures')
"""Keyword arguments of `SegmentationFiles`."""


class SegmentationFiles:
    """Write `overlays/NAME.png` and `class_ids/NAME.png` of each image.

    Args:
        folder: Where the two folders go.
        opacity: How much of the colours covers the image in overlays, 0 to 1.
        pictures: Whether to write overlays.
    """

    columns = ('file', 'class_id', 'class', 'pixels', 'share', 'score')

    def __init__(self, folder: Path, model: Segmenter, *, opacity: float = 0.6, pictures: bool = True) -> None:
        self._folder = folder
        self._opacity = opacity
        self._pictures = pictures
        for name in FOLDERS[not pictures :]:
            (folder / name).mkdir(parents=True, exist_ok=True)

    def write(self, result: SegmentationResult, name: str) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
        """Write the files of one image; return its rows of the table and its entry of the JSON."""
        height, width = result.class_map.shape
        written = {'class_ids': f'{CLASS_IDS}/{name}.png'}
        Image.fromarray(result.class_map).save(self._folder / written['class_ids'])
        if self._pictures:
            written['overlay'] = f'{OVERLAYS}/{name}.png'
            Image.fromarray(overlay(result, self._opacity)).save(self._folder / written['overlay'])
        found = result.classes
        rows = [(result.source, c.class_id, c.name, c.pixels, round(c.share, 6), round(c.score, 6)) for c in found]
        entry: dict[str, Any] = dict(file=result.source, width=width, height=height, tiles=result.tiles, **written)
        return rows, entry | dict(classes=[one._asdict() for one in found])
