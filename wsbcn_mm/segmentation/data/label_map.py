"""Label files by an explicit map: a value that nobody has spoken for is an error, never a class by accident.

A label map is a plain dict `{raw value: class}`; a raw value that is to be ignored has the class `IGNORED`.
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
"""Types of the pipeline steps that read labels."""


def with_ignored(classes: Mapping[int, int], ignore: Iterable[int]) -> dict[int, int]:
    """The label map of `{raw value: class}` and the raw values to ignore.

    Raises:
        ValueError: For a raw value that has a class and is ignored, or a number that no label file can hold.
    """
    ignored = set(ignore)
    both = sorted(ignored & set(classes))
    if both:
        raise ValueError(f'label map: the values {both} have a class and are ignored')
    label_map = dict(classes) | dict.fromkeys(ignored, IGNORED)
    for raw, index in label_map.items():
        if not 0 <= raw <= 255 or not (0 <= index < UNKNOWN or index == IGNORED):
            raise ValueError(
                f'label map: {raw} -> {index}; raw values are 0 to 255, classes 0 to {UNKNOWN - 1} '
                f'or {IGNORED} (ignored)'
            )
    return label_map


def read_label_file(file: str | Path) -> np.ndarray:
    """Raw values of a label file, (H, W) uint8: grey levels, or the indices of a palette picture.

    Raises:
        ValueError: For a picture of colours, which has no label per pixel, or of more than 8 bits.
    """
    with Image.open(file) as picture:
        if picture.mode not in ('L', 'P'):
            raise ValueError(
                f'label file {file} is a picture of mode {picture.mode}: one 8-bit label per pixel is needed, '
                'a grey (L) or palette (P) PNG; colours and instance numbers do not do'
            )
        return np.asarray(picture)


def map_labels(raw: np.ndarray, label_map: Mapping[int, int], file: str | Path) -> np.ndarray:
    """Classes of the raw values, (H, W) uint8, with `IGNORED` where they are ignored.

    Raises:
        ValueError: For a value outside the map, naming `file`, every such value and its number of pixels.
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
    """What is wrong with a file of these `{raw value: pixels}`; empty if nothing is."""
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
    """[0, 1, 2, 5] -> '0-2, 5'; 'none' without values."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ', '.join(str(low) if low == high else f'{low}-{high}' for low, high in runs) or 'none'


@TRANSFORMS.register_module()
class LoadStrictLabels(BaseTransform):
    """Read `seg_map_path` into `gt_seg_map`, (H, W) uint8, by a label map; other values are an error.

    It stands where mmseg's `LoadAnnotations` stands, which lets any value pass, and has a map in place of its
    `reduce_zero_label`. A sample without `seg_map_path` passes as it is: inference has images alone, and the losses and
    metrics cannot do without labels.

    Args:
        label_map: `{raw value: class}`; if None, the dataset's, complete with what is ignored. Keys may be strings of
            digits, as they are in a config that was written to a file.
        ignore: Raw values that do not count.

    Raises:
        ValueError: For a map that contradicts itself, and while loading for a value outside it, a picture of colours,
            labels of another size than the image's file, a dataset with `reduce_zero_label`, or none of the two maps.
    """

    def __init__(self, label_map: Mapping[int | str, int] | None = None, ignore: Iterable[int] = ()) -> None:
        if label_map is None and ignore:
            raise ValueError(f'LoadStrictLabels: ignore={list(ignore)} goes with a label_map')
        self.label_map = None
        if label_map is not None:
            self.label_map = with_ignored({int(raw): index for raw, index in label_map.items()}, ignore)

    def transform(self, results: dict) -> dict:
        if 'seg_map_path' not in results:
            return results
        file = results['seg_map_path']
        if results.get('reduce_zero_label'):
            raise ValueError(
                'reduce_zero_label=True with LoadStrictLabels: say it as label_map={1: 0, 2: 1, ...} and ignore=[0]'
            )
        reader = None if self.label_map else results.get('mask_reader')
        label_map: Any = self.label_map or results.get('label_map')
        if label_map is None and reader is None:
            raise ValueError(f'no label map for {file}: give LoadStrictLabels a label_map, such as {{0: 0, 1: 1}}')
        raw = reader.read(file) if reader else read_label_file(file)
        size = results.get('ori_shape', raw.shape)
        if raw.shape != size:
            # A later Resize would stretch the labels over the image.
            raise ValueError(
                f'image {results["img_path"]} is {size[1]} x {size[0]} pixels, '
                f'its label file {file} {raw.shape[1]} x {raw.shape[0]}'
            )
        results['gt_seg_map'] = reader.map(raw, file) if reader else map_labels(raw, label_map, file)
        results['seg_fields'].append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(label_map={self.label_map})'
