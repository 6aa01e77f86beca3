"""Draw a sample as a segmentation model sees it: the input image, and the labels over it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np

from ...engine.data.sheets import captioned, denormalised, fitted, legend, shortened
from ..data.label_map import IGNORED
from .overlays import IGNORED_COLOUR, side_by_side

COLUMNS = 2
WIDTH = 784
"""Width of a sample's picture in pixels."""
OPACITY = 0.6


def draw(sample: Mapping[str, Any], preprocessor: Any, metainfo: Mapping[str, Any], training: bool) -> np.ndarray:
    """Draw image and labels of a packed sample after the model's preprocessor, captioned with its transforms."""
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    out = preprocessor(batch, training)
    (fed,) = out['data_samples']
    image = denormalised(out['inputs'][0], preprocessor).permute(1, 2, 0).numpy()
    labels = fed.gt_sem_seg.data[0].numpy().astype(np.uint8)
    if labels.shape != image.shape[:2]:
        # labels for evaluation have the size of the file: resize them to the image before its padding
        height, width = fed.img_shape[:2]
        image, labels = image[:height, :width], mmcv.imresize(labels, (width, height), interpolation='nearest')
    picture = fitted(side_by_side(image, [labels], metainfo['palette'], OPACITY), WIDTH)
    facts = [f'{labels.shape[0]} x {labels.shape[1]}', f'{100 * (labels == IGNORED).mean():.0f} % ignored']
    if fed.metainfo.get('flip'):
        facts.append('mirrored')
    width = picture.shape[1]
    return captioned(picture, [shortened(Path(fed.img_path).name, width), shortened(', '.join(facts), width)])


def key(metainfo: Mapping[str, Any], width: int) -> np.ndarray:
    """Draw a legend of the classes and of ignored pixels."""
    entries: list[tuple[str, Sequence[int]]] = list(zip(metainfo['classes'], metainfo['palette'], strict=True))
    return legend([*entries, ('ignored', IGNORED_COLOUR)], width)
