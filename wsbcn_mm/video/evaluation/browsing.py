"""Draw a sample as a video model sees it: frames of the input clip."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.data.sheets import captioned, denormalised, fitted, shortened
from .strips import class_name, strip

COLUMNS = 1
WIDTH = 1568
"""Width of a sample's picture in pixels."""
FRAMES = 8
"""Largest number of frames shown, evenly spaced."""


def draw(sample: Mapping[str, Any], preprocessor: Any, metainfo: Mapping[str, Any], training: bool) -> np.ndarray:
    """Draw frames of a packed sample's first view after the model's preprocessor, captioned with class and numbers."""
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    out = preprocessor(batch, training)
    (fed,) = out['data_samples']
    views, clip = out['inputs'].shape[1], denormalised(out['inputs'][0, 0], preprocessor)
    total = clip.shape[1]
    shown = torch.linspace(0, total - 1, min(total, FRAMES)).round().long()
    picture = fitted(strip(clip[:, shown], []), WIDTH)
    numbers = torch.tensor(fed.frame_indices[0])[shown].tolist() if 'frame_indices' in fed else []
    facts = [f'{len(shown)} of {total} frames of {clip.shape[2]} x {clip.shape[3]}']
    facts += [f'numbers {", ".join(map(str, numbers))} of {fed.total_frames}'] if numbers else []
    facts += [f'the first of {views} views'] if views > 1 else []
    label = int(fed.gt_label)
    lines = [f'{class_name(metainfo.get("classes"), label)} (label {label}), {Path(fed.path).name}', '; '.join(facts)]
    return captioned(picture, [shortened(line, picture.shape[1]) for line in lines])


def key(metainfo: Mapping[str, Any], width: int) -> None:
    """Return None: the class is named above each clip."""
