"""A picture of the toy data: scenes beside their labels, and clips as strips of frames."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
from matplotlib.figure import Figure

from projects.toy_data.clips import ANNOTATIONS
from projects.toy_data.scenes import IGNORE, seg_palette


def colour_labels(labels: np.ndarray, palette: list[list[int]]) -> np.ndarray:
    """Turn a label map (H, W) into RGB (H, W, 3) uint8; ignored pixels are white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = palette
    table[IGNORE] = 255
    return table[labels]


def read_clip(path: Path) -> np.ndarray:
    """Return all frames of a video file, (T, H, W, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)])


def write_contact_sheet(root: str | Path, path: str | Path, n_scenes: int = 16, frames: int = 8) -> Path:
    """Write a PNG with validation scenes and labels of `<root>/seg` and one clip per class of `<root>/video`.

    A set that does not exist is left out.

    Raises:
        FileNotFoundError: If neither exists.
    """
    root, path = Path(root), Path(path)
    images = sorted((root / 'seg/leftImg8bit/val').rglob('*.png'), key=lambda file: file.stem.split('_')[1])[:n_scenes]
    annotation = root / 'video' / ANNOTATIONS['val']
    entries = json.loads(annotation.read_text()) if annotation.is_file() else []
    entries = list({entry['template']: entry for entry in reversed(entries)}.values())[::-1]
    if not images and not entries:
        raise FileNotFoundError(f'{root} has neither seg nor video')
    per_row = 4
    scene_rows = -(-len(images) // per_row)
    rows = scene_rows + len(entries)
    figure = Figure(figsize=(12, 1.45 * rows), layout='constrained')
    grid = figure.add_gridspec(rows, 2 * per_row)
    if images:
        digits = json.loads((root / 'seg/manifest.json').read_text())['parameters']['digits']
        palette = seg_palette(digits)
    for index, image in enumerate(images):
        labels = Path(str(image).replace('leftImg8bit', 'gtFine', 1).replace('_leftImg8bit', '_gtFine_labelTrainIds'))
        pictures = (
            cv2.imread(str(image))[..., ::-1],
            colour_labels(cv2.imread(str(labels), cv2.IMREAD_UNCHANGED), palette),
        )
        for side, picture in enumerate(pictures):
            axes = figure.add_subplot(grid[index // per_row, 2 * (index % per_row) + side])
            axes.imshow(picture)
            axes.set_axis_off()
    for index, entry in enumerate(entries):
        clip = read_clip(root / 'video/videos' / f'{entry["id"]}.mp4')
        shown = clip[np.linspace(0, len(clip) - 1, frames).round().astype(int)]
        axes = figure.add_subplot(grid[scene_rows + index, :])
        axes.imshow(np.concatenate(list(shown), axis=1))
        axes.set_title(entry['label'], fontsize=9, loc='left', pad=2)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
