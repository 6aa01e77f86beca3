"""Mask files of a folder data set: values, palette indices, colours or 0/255, read as its class list says."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from .class_list import IGNORE, ClassList, unpack
from .label_map import IGNORED, UNKNOWN, ranges

MASK_SUFFIXES = ('.png', '.bmp', '.tif', '.tiff', '.gif', '.webp')
"""Formats that can keep values as they are."""

LOSSY = ('JPEG', 'MPO', 'JPEG2000')
SHOWN = 6
NEAR = 40.0
"""Distance of two colours, in RGB, that a lossy file or a smoothed edge may account for."""


def read_mask(file: str | Path, by_colour: bool) -> np.ndarray:
    """Return the raw values of a mask, (H, W).

    Args:
        file: Mask file.
        by_colour: Read colours, packed to 0xRRGGBB in int32. Otherwise read values: grey levels of 8 or 16 bits, the
            indices of a palette picture, 0 and 1 of a picture of 1 bit; uint8 or uint16.

    Raises:
        FileNotFoundError: If the file does not exist.
        OSError: If the file is damaged, naming it.
        ValueError: For a lossy format, a picture with transparent pixels, colours where values are wanted, or grey
            levels of 16 bits where colours are.
    """
    try:
        with Image.open(file) as picture:
            if picture.format in LOSSY:
                raise ValueError(f'mask {file} is a {picture.format}, which changes values: save masks as PNG')
            picture.load()
            return _colours(picture, file) if by_colour else _values(picture, file)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f'mask {file} is damaged, or of a format that Pillow does not read: {error}') from error


def map_mask(raw: np.ndarray, classes: ClassList, file: str | Path) -> np.ndarray:
    """Return the classes of a mask's raw values, (H, W) uint8, with `IGNORED` where they are ignored.

    Raises:
        ValueError: For a value or colour outside the list, naming `file`, each of them and its number of pixels.
    """
    table = _table(tuple(classes.label_map.items()), 1 << 24 if classes.by_colour else 1 << 8 * raw.itemsize)
    mapped: np.ndarray = cv2.LUT(raw, table) if raw.dtype == np.uint8 else table[raw]
    if (mapped == UNKNOWN).any():
        raise ValueError(outside_list(count_raw(raw), classes, file))
    return mapped


def count_raw(raw: np.ndarray) -> dict[int, int]:
    """Return `{raw value: pixels}` of a mask."""
    if raw.dtype == np.uint8:
        counts = np.bincount(raw.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, pixels = np.unique(raw, return_counts=True)
    return dict(zip(values.tolist(), pixels.tolist(), strict=True))


def outside_list(pixels: Mapping[int, int], classes: ClassList, file: str | Path) -> str:
    """Return what is wrong with a mask of these `{raw value: pixels}`; an empty text if nothing is."""
    strange = {raw: count for raw, count in pixels.items() if raw not in classes.label_map}
    if not strange:
        return ''
    kind = 'colours' if classes.by_colour else 'values'
    most_first = sorted(strange.items(), key=lambda item: -item[1])
    listed = ', '.join(f'{classes.raw_name(raw)} ({count} pixels)' for raw, count in most_first[:SHOWN])
    if len(strange) > SHOWN:
        listed += f' and {len(strange) - SHOWN} more {kind}'
    return (
        f'mask {file} has {kind} outside classes.txt: {listed}. {_accepted(classes)}{_hint(strange, pixels, classes)}'
    )


def _accepted(classes: ClassList) -> str:
    used = [raw for raw, index in classes.label_map.items() if index != IGNORED]
    ignored = [raw for raw, index in classes.label_map.items() if index == IGNORED]
    if not classes.by_colour:
        return f'Classes: {ranges(used)}; ignored: {ranges(ignored)}'
    shown = ', '.join(f'{classes.class_name(raw)} {classes.raw_name(raw)}' for raw in used[:SHOWN])
    more = f' and {len(used) - SHOWN} more' if len(used) > SHOWN else ''
    return f'Classes: {shown}{more}; ignored: {", ".join(map(classes.raw_name, ignored)) or "none"}'


def _hint(strange: Mapping[int, int], pixels: Mapping[int, int], classes: ClassList) -> str:
    if classes.by_colour:
        known = np.array([unpack(raw) for raw in classes.label_map])
        most = max(strange, key=lambda raw: strange[raw])
        distances = np.linalg.norm(known - np.array(unpack(most)), axis=1)
        if len(strange) > SHOWN:
            return '. So many colours come from smoothed edges or a lossy format: draw and save masks without them'
        if distances.min() <= NEAR:
            near = list(classes.label_map)[int(distances.argmin())]
            return f'. Nearest to {classes.raw_name(most)}: {classes.class_name(near)} {classes.raw_name(near)}'
        return ''
    if set(pixels) <= {0, 255} and len(classes.names) == 2 and 1 in classes.label_map:
        return f'. For masks of 0 and 255, write in classes.txt: {classes.names[0]} 0, {classes.names[1]} 255'
    if set(strange) == {255}:
        return f'. If 255 marks pixels that do not count, add the line "{IGNORE} 255" to classes.txt'
    return ''


def _values(picture: Image.Image, file: str | Path) -> np.ndarray:
    if picture.mode in ('L', 'P'):
        return np.asarray(picture)
    if picture.mode == '1':
        return np.asarray(picture).astype(np.uint8)
    if picture.mode.startswith('I'):
        raw = np.asarray(picture)
        if raw.min(initial=0) < 0 or raw.max(initial=0) > 65535:
            raise ValueError(f'mask {file} has values from {raw.min()} to {raw.max()}: 0 to 65535 are accepted')
        return raw.astype(np.uint16)
    if picture.mode in ('LA', 'RGB', 'RGBA'):
        channels = _opaque(picture, file)
        if (channels == channels[..., :1]).all():
            return np.ascontiguousarray(channels[..., 0])
        colours = sorted(count_raw(_packed(channels)).items(), key=lambda item: -item[1])
        listed = ', '.join(f'#{raw:06x} ({pixels} pixels)' for raw, pixels in colours[:SHOWN])
        more = f' and {len(colours) - SHOWN} more' if len(colours) > SHOWN else ''
        raise ValueError(
            f'mask {file} is a picture of colours, {listed}{more}: give each class its colour in classes.txt, as in '
            f'"road 128 64 128"'
        )
    raise ValueError(f'mask {file} is a picture of mode {picture.mode}: grey levels, a palette or RGB are accepted')


def _colours(picture: Image.Image, file: str | Path) -> np.ndarray:
    if picture.mode.startswith('I') or picture.mode in ('F', 'CMYK', 'LAB', 'YCbCr', 'HSV'):
        raise ValueError(f'mask {file} is a picture of mode {picture.mode}: RGB or a palette is accepted')
    if picture.mode in ('LA', 'RGBA'):
        return _packed(_opaque(picture, file))
    return _packed(np.asarray(picture.convert('RGB')))


def _opaque(picture: Image.Image, file: str | Path) -> np.ndarray:
    """Return the channels, (H, W, 1 or 3), of a picture without transparent pixels."""
    channels = np.asarray(picture)
    if picture.mode == 'RGB':
        return channels
    transparent = int((channels[..., -1] < 255).sum())
    if transparent:
        raise ValueError(
            f'mask {file} has {transparent} transparent pixels, which have no class: save masks without transparency'
        )
    return channels[..., :-1]


def _packed(channels: np.ndarray) -> np.ndarray:
    """Return 0xRRGGBB, (H, W) int32, of (H, W, 1 or 3)."""
    red, green, blue = (channels[..., min(index, channels.shape[-1] - 1)].astype(np.int32) for index in range(3))
    return red << 16 | green << 8 | blue


@lru_cache(maxsize=4)
def _table(label_map: tuple[tuple[int, int], ...], size: int) -> np.ndarray:
    """Return the class of every raw value below `size`, uint8."""
    table = np.full(size, UNKNOWN, np.uint8)
    for raw, index in label_map:
        if raw < size:
            table[raw] = index
    return table
