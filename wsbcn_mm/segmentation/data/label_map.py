"""Label files read through an explicit map: a value outside the map is an error, never a class by accident.

A label map is a plain dict `{raw value: class}`. Ignored raw values have the class `IGNORED`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS
from PIL import Image

IGNORED = 255
UNKNOWN = 254

LABEL_LOADERS = ('LoadStrictLabels', 'LoadAnnotations')
"""Types of pipeline steps that load labels."""


def with_ignored(classes: Mapping[int, int], ignore: Iterable[int]) -> dict[int, int]:
    """Return the label map of `{raw value: class}` and the raw values to ignore.

    Raises:
        ValueError: If a raw value both has a class and is ignored, or a number does not fit into a label file.
    """
    ignored = set(ignore)
    both = sorted(ignored & set(classes))
    if both:
        raise ValueError(f'label map: the values {both} both have a class and are ignored')
    label_map = dict(classes) | dict.fromkeys(ignored, IGNORED)
    for raw, index in label_map.items():
        if not 0 <= raw <= 255 or not (0 <= index < UNKNOWN or index == IGNORED):
            raise ValueError(
                f'label map {{{raw}: {index}}}: raw values from 0 to 255 and classes from 0 to {UNKNOWN - 1}, or '
                f'{IGNORED} (ignored), are expected'
            )
    return label_map


def read_label_file(file: str | Path) -> np.ndarray:
    """Return the raw values of a label file, (H, W) uint8: grey levels, or the indices of a palette image.

    Raises:
        ValueError: For a colour image, which has no label per pixel, or an image of more than 8 bits.
    """
    with Image.open(file) as picture:
        if picture.mode not in ('L', 'P'):
            raise ValueError(
                f'label file {file} is an image of mode {picture.mode}: one 8-bit label per pixel is expected, '
                'a grey (L) or palette (P) PNG, not colours or instance numbers'
            )
        return np.asarray(picture)


def map_labels(raw: np.ndarray, label_map: Mapping[int, int], file: str | Path) -> np.ndarray:
    """Return the classes of the raw values, (H, W) uint8, with `IGNORED` for ignored pixels.

    Raises:
        ValueError: If values are outside the map. The error names `file`, every such value and its number of pixels.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    for value, index in label_map.items():
        table[value] = index
    classes = cv2.LUT(raw, table)
    if (classes == UNKNOWN).any():
        values, counts = np.unique(raw, return_counts=True)
        raise ValueError(outside(dict(zip(values.tolist(), counts.tolist(), strict=True)), label_map, file))
    return classes


def outside(values: Mapping[int, int], label_map: Mapping[int, int], file: str | Path) -> str:
    """Describe the values outside the map in a file with these `{raw value: pixels}`; empty if there are none."""
    strange = {value: pixels for value, pixels in values.items() if value not in label_map}
    if not strange:
        return ''
    listed = ', '.join(f'{value} ({pixels} pixels)' for value, pixels in strange.items())
    classes = ranges(value for value, index in label_map.items() if index != IGNORED)
    ignored = ranges(value for value, index in label_map.items() if index == IGNORED)
    text = f'label file {file} has values outside the label map: {listed}. Classes: {classes}; ignored: {ignored}'
    if set(values) == {0, 255}:
        text += '. For a mask of 0 and 255: label_map={0: 0, 255: 1}'
    return text


def ranges(values: Iterable[int]) -> str:
    """Format [0, 1, 2, 5] as '0-2, 5', and no values as 'none'."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ', '.join(str(low) if low == high else f'{low}-{high}' for low, high in runs) or 'none'


@TRANSFORMS.register_module()
class LoadStrictLabels(BaseTransform):
    """Load `seg_map_path` into `gt_seg_map`, (H, W) uint8, through a label map; a value outside the map is an error.

    It replaces mmseg's `LoadAnnotations`, which accepts any value; the map replaces `reduce_zero_label`. A sample
    without `seg_map_path` passes unchanged: inference has only images, and losses and metrics fail without labels.

    Args:
        label_map: `{raw value: class}`. If None, the dataset's map is used, which includes the ignored values. Keys may
            be strings of digits, as in a config that was written to a file.
        ignore: Raw values to ignore.

    Raises:
        ValueError: For a contradictory map. While loading: for a value outside the map, a colour image, labels of
            another size than the image file, a dataset with `reduce_zero_label`, or if neither map is given.
    """

    def __init__(self, label_map: Mapping[int | str, int] | None = None, ignore: Iterable[int] = ()) -> None:
        if label_map is None and ignore:
            raise ValueError(f'LoadStrictLabels: ignore={list(ignore)} needs a label_map')
        self.label_map = None
        if label_map is not None:
            self.label_map = with_ignored({int(raw): index for raw, index in label_map.items()}, ignore)

    def transform(self, results: dict) -> dict:
        if 'seg_map_path' not in results:
            return results
        file = results['seg_map_path']
        if results.get('reduce_zero_label'):
            raise ValueError(
                'reduce_zero_label=True: LoadStrictLabels expects label_map={1: 0, 2: 1, ...} and ignore=[0] instead'
            )
        reader = None if self.label_map else results.get('mask_reader')
        label_map: Any = self.label_map or results.get('label_map')
        if label_map is None and reader is None:
            raise ValueError(f'no label map for {file}: give LoadStrictLabels a label_map, such as {{0: 0, 1: 1}}')
        raw = reader.read(file) if reader else read_label_file(file)
        size = results.get('ori_shape', raw.shape)
        if raw.shape != size:
            # A later Resize would silently stretch the labels over the image.
            raise ValueError(
                f'image {results["img_path"]} is {size[1]} x {size[0]} pixels, '
                f'its label file {file} {raw.shape[1]} x {raw.shape[0]}'
            )
        results['gt_seg_map'] = reader.map(raw, file) if reader else map_labels(raw, label_map, file)
        results['seg_fields'].append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(label_map={self.label_map})'
