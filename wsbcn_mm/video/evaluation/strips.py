"""Draw predictions: the frames of a clip in a row, with the true and the predicted class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image

from ...engine.data.sheets import GAP, captioned


@HOOKS.register_module()
class ClipStripHook(Hook):
    """Save the first view of the first clips of a test as PNG files `<number>_<video name>.png`.

    With several devices, the first one saves its share of the clips.

    Args:
        out_dir: Folder, created if missing; `strips` in the run's folder if None.
        max_images: Number of clips to save.

    Raises:
        ValueError: For a negative number of clips.
    """

    def __init__(self, out_dir: str | Path | None = None, max_images: int = 20) -> None:
        if max_images < 0:
            raise ValueError(f'max_images={max_images!r}: a number >= 0 is expected')
        self.out_dir = out_dir
        self.max_images = max_images
        self.saved = 0

    def before_test(self, runner: Runner) -> None:
        self.saved = 0

    @master_only
    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        folder = Path(runner.work_dir) / 'strips' if self.out_dir is None else Path(self.out_dir)
        classes = runner.test_dataloader.dataset.metainfo.get('classes')
        clips = (data_batch or {}).get('inputs', ())
        for clip, sample in list(zip(clips, outputs or (), strict=True))[: self.max_images - self.saved]:
            truth, prediction = int(sample.gt_label), int(sample.pred_score.argmax())
            predicted = f'{class_name(classes, prediction)} ({float(sample.pred_score.max()):.0%})'
            picture = strip(clip[0], [f'truth: {class_name(classes, truth)}', f'prediction: {predicted}'])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f'{self.saved:04d}_{Path(sample.path).stem}.png')
            self.saved += 1


def class_name(classes: Sequence[str] | None, label: int) -> str:
    """Return the name of a class, or its number if the dataset has no names."""
    return classes[label] if classes else f'class {label}'


def strip(clip: torch.Tensor, caption: Sequence[str]) -> np.ndarray:
    """Draw frames side by side under a caption; a caption wider than the frames widens the picture.

    Args:
        clip: (3, T, H, W), uint8, RGB.
        caption: Lines of text.

    Returns:
        (H + caption, at least T * (W + gap) - gap, 3), uint8, RGB.
    """
    frames = clip.permute(1, 2, 3, 0).cpu().numpy()
    gap = np.full((frames.shape[1], GAP, 3), 255, np.uint8)
    row = np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1)
    return captioned(row, caption)
