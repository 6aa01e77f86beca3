"""Draw predictions: image, ground truth and prediction side by side, in the dataset's palette."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from PIL import Image

from ...engine.data.sheets import GAP, WHITE

IGNORED_COLOUR = WHITE


@HOOKS.register_module()
class OverlayHook(Hook):
    """Save the first images of a test or validation as PNG files of `side_by_side` panels.

    Files are named `<number>_<image name>.png`, in `out_dir` for a test and in `out_dir/iter_<iteration>` for a
    validation. With several devices, the first one saves its share of the images.

    Args:
        out_dir: Folder, created if missing; `overlays` in the run's folder if None.
        max_images: Number of images to save.
        opacity: Opacity of the label colours over the image, from 0 to 1.

    Raises:
        ValueError: For an opacity outside [0, 1] or a negative number of images.
    """

    def __init__(self, out_dir: str | Path | None = None, max_images: int = 20, opacity: float = 1.0) -> None:
        if not 0 <= opacity <= 1:
            raise ValueError(f'opacity={opacity!r}: a number from 0 to 1 is expected')
        if max_images < 0:
            raise ValueError(f'max_images={max_images!r}: a number >= 0 is expected')
        self.out_dir = out_dir
        self.max_images = max_images
        self.opacity = opacity
        self.saved = 0

    def before_test(self, runner: Runner) -> None:
        self.saved = 0

    def before_val(self, runner: Runner) -> None:
        self.saved = 0

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        self._save(self._folder(runner), runner.test_dataloader.dataset.metainfo['palette'], outputs or ())

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[SegDataSample] | None = None,
    ) -> None:
        folder = self._folder(runner) / f'iter_{runner.iter}'
        self._save(folder, runner.val_dataloader.dataset.metainfo['palette'], outputs or ())

    def _folder(self, runner: Runner) -> Path:
        return Path(runner.work_dir) / 'overlays' if self.out_dir is None else Path(self.out_dir)

    @master_only
    def _save(self, folder: Path, palette: Sequence[Sequence[int]], samples: Sequence[SegDataSample]) -> None:
        for sample in samples[: self.max_images - self.saved]:
            image = mmcv.imread(sample.img_path, channel_order='rgb')
            labels = [
                getattr(sample, field).data.squeeze(0).cpu().numpy()
                for field in ('gt_sem_seg', 'pred_sem_seg')
                if field in sample
            ]
            folder.mkdir(parents=True, exist_ok=True)
            panels = side_by_side(image, labels, palette, self.opacity)
            Image.fromarray(panels).save(folder / f'{self.saved:04d}_{Path(sample.img_path).stem}.png')
            self.saved += 1


def side_by_side(
    image: np.ndarray, labels: Sequence[np.ndarray], palette: Sequence[Sequence[int]], opacity: float = 1.0
) -> np.ndarray:
    """Draw the image and its label maps in one row.

    Args:
        image: (H, W, 3), uint8, RGB.
        labels: Label maps (H, W); values outside the palette are white.
        palette: One RGB colour for each class.
        opacity: Opacity of the label colours over the image.

    Returns:
        (H, W * (1 + len(labels)) + gaps, 3), uint8, RGB.

    Raises:
        ValueError: For a label map of another size than the image.
    """
    gap = np.full((image.shape[0], GAP, 3), 255, np.uint8)
    row = [image]
    for label in labels:
        if label.shape != image.shape[:2]:
            raise ValueError(f'label map of shape {label.shape}: shape {image.shape[:2]} of the image is expected')
        colours = opacity * colourise(label, palette) + (1 - opacity) * image
        row += [gap, colours.round().astype(np.uint8)]
    return np.concatenate(row, axis=1)


def colourise(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Convert a label map (H, W) to colours (H, W, 3), uint8, RGB; values outside the palette are white."""
    colours = np.array([*palette, IGNORED_COLOUR], np.uint8)
    label = label.astype(np.int64)  # a model with one output predicts floats
    inside = (label >= 0) & (label < len(palette))
    return colours[np.where(inside, label, len(palette))]
