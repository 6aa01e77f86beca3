"""Test-time augmentation and sliding windows for any segmentation recipe."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from ...engine.recipe.tree import dicts_in
from ..data.label_map import LABEL_LOADERS
from .metrics import require_finite

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales relative to the recipe's test size, as mmsegmentation and DeepLab use them; each with its mirror image."""


@MODELS.register_module()
class MeanProbability(SegTTAModel):
    """Average the softmax probabilities over the augmented copies of an image, in the image's own size.

    The result equals that of mmseg's `SegTTAModel`, which keeps the logits of all copies until the last one. This keeps
    a running sum of the probabilities, so that memory does not grow with the number of copies. The samples are returned
    without `seg_logits`.
    """

    def test_step(self, data: Mapping[str, Sequence[Any]]) -> list[SegDataSample]:
        """Return one sample per image; `data` has, for each key, a list over copies of lists over images.

        Raises:
            ValueError: For scores that are not finite. The error names the image.
        """
        copies = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
        samples: list[SegDataSample] = []
        sums: list[torch.Tensor] = []
        for copy in copies:
            found = self.module.test_step(copy)
            probabilities = [as_probabilities(sample.seg_logits.data) for sample in found]
            for sample in found:
                require_finite(sample.seg_logits.data, sample.img_path)
                del sample.seg_logits
            if sums:
                for total, more in zip(sums, probabilities, strict=True):
                    total += more
            else:
                samples, sums = found, probabilities
        for sample, total in zip(samples, sums, strict=True):
            sample.pred_sem_seg = PixelData(data=self._classes(total / len(copies)))
        return samples

    def _classes(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return the classes (1, H, W) of probabilities (K, H, W), by the segmentor's own rule."""
        if len(probabilities) > 1:
            return probabilities.argmax(dim=0, keepdim=True)
        threshold = next(m.threshold for m in self.module.modules() if hasattr(m, 'threshold'))
        return (probabilities > threshold).to(probabilities)


def as_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return the probabilities (K, H, W) of `seg_logits`; mmseg already applied the sigmoid to a single channel."""
    return logits.softmax(dim=0) if len(logits) > 1 else logits.clone()


def use_tta(cfg: Config, scales: Sequence[float] = SCALES, flip: bool = True) -> None:
    """Make a recipe's test average over copies of each image in several sizes, and over their mirror images.

    Raises:
        ValueError: For scales that are not above 0, or a test pipeline with unknown steps.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f'scales={tuple(scales)}: one or more factors above 0 are expected')
    for node in dicts_in(cfg.test_dataloader.dataset):
        if 'pipeline' in node:
            node['pipeline'] = tta_pipeline(node['pipeline'], scales, flip)
    hook = dict(type='PrepareTTAHook', tta_cfg=dict(type='MeanProbability'))
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def tta_pipeline(steps: Sequence[dict[str, Any]], scales: Sequence[float], flip: bool) -> list[dict[str, Any]]:
    """Return the test pipeline with copies in sizes relative to its own `Resize`, or to the image if it has none.

    Labels are loaded last, so they keep the size of the file and are never mirrored.
    """
    kinds = [step['type'] for step in steps]
    images = [dict(step) for step in steps if step['type'].startswith('LoadImage')]
    resizes = [dict(step) for step in steps if step['type'] == 'Resize']
    labels = [dict(step) for step in steps if step['type'] in LABEL_LOADERS]
    known = len(images) + len(resizes) + len(labels) + 1
    if kinds[-1] != 'PackSegInputs' or known != len(steps) or len(resizes) > 1:
        raise ValueError(
            f'test-time augmentation of the pipeline {", ".join(kinds)}: LoadImage..., at most one Resize, '
            f'{", ".join(LABEL_LOADERS)} and, last, PackSegInputs are expected'
        )
    resize = resizes[0] if resizes else dict(type='Resize', scale_factor=1.0, keep_ratio=True)
    copies = [
        [scaled(resize, factor) for factor in scales],
        [dict(type='RandomFlip', prob=prob) for prob in ((0.0, 1.0) if flip else (0.0,))],
        *([step] for step in labels),
        [dict(steps[-1])],
    ]
    return [*images, dict(type='TestTimeAug', transforms=copies)]


def scaled(resize: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Return a `Resize` step whose target is `factor` times as large."""
    if 'scale' in resize:
        return {**resize, 'scale': tuple(round(side * factor) for side in resize['scale'])}
    return {**resize, 'scale_factor': resize['scale_factor'] * factor}


def use_sliding_window(cfg: Config, crop: Sequence[int], stride: Sequence[int]) -> None:
    """Make a recipe's model predict on sliding windows (mmseg's mode `slide`), averaging logits where they overlap.

    Args:
        cfg: The recipe.
        crop: (height, width) of a window.
        stride: (height, width) of the step between windows, not larger than the window.

    Raises:
        ValueError: For numbers below 1, or steps that would skip pixels.
    """
    if min(*crop, *stride) < 1 or any(step > side for step, side in zip(stride, crop, strict=True)):
        raise ValueError(
            f'sliding window of {tuple(crop)} in steps of {tuple(stride)}: (height, width) >= 1, and steps not larger '
            'than the window, are expected'
        )
    cfg.model.test_cfg = dict(mode='slide', crop_size=tuple(crop), stride=tuple(stride))


def window_side(text: str) -> tuple[int, int]:
    """Parse '769' or '512x1024' to (height, width).

    Raises:
        ValueError: For any other text.
    """
    height, _, width = text.partition('x')
    try:
        return int(height), int(width or height)
    except ValueError:
        raise ValueError(f'--sliding-window {text!r}: N or HEIGHTxWIDTH is expected') from None
