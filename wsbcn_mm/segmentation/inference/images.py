"""Images for a trained model: from files by the recipe's loader, or from arrays."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import TiffImagePlugin

from ..data.image_files import PNG_SIGNATURE

LOADERS = ('LoadImageFromFile', 'LoadImage')
"""Loaders that make 8 bits of everything, unless their color_type is 'unchanged'."""

TIFF_SIGNATURES = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, EXTRA_SAMPLES = 258, 277, 338
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}
"""Channels without transparency, by the colour type in a PNG's header."""

LARGE = 2**24
"""Pixels above which an image is tiled by default, and bytes above which a file is decoded with less memory."""


def image_of_file(
    file: str | Path,
    step: Mapping[str, Any],
    load: Callable[[dict[str, Any]], dict[str, Any] | None],
    channels: int,
    max_value: float | None = None,
) -> np.ndarray:
    """Read an image as the recipe does.

    Args:
        file: Image file.
        step: The recipe's loading step.
        load: The same step, built.
        channels: Channels that the model takes.
        max_value: Value that becomes 255 in a file of more than 8 bits.

    Returns:
        (H, W) or (H, W, C), BGR.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not an image, has more than 8 bits without `max_value`, or has channels that the loader
            would drop.
    """
    makes_bytes = step['type'] in LOADERS and not str(step.get('color_type', 'color')).startswith('unchanged')
    if makes_bytes:
        bits, own_channels = bits_and_channels(file)
        if own_channels > max(channels, 3):
            raise ValueError(f'image {file} has {own_channels} channels, the model takes {channels}: remove the others')
        if bits > 8:
            if max_value is None:
                raise ValueError(
                    f'image {file} has {bits} bits per channel, the recipe loads 8: give the value that becomes 255 '
                    'with --max-value (max_value= in Python), such as 4095 for 12-bit values'
                )
            return scaled_image(file, str(step.get('color_type', 'color')), max_value)
        if Path(file).stat().st_size > LARGE and plain_flag(step) is not None:
            # The loaders hold the content of the file, and PyAV a PNG several times, beside the image.
            image = cv2.imread(str(file), plain_flag(step))
            if image is not None:
                return image
    try:
        results = load(dict(img_path=str(file), seg_fields=[], reduce_zero_label=False, label_map=None))
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ValueError(f'image {file} cannot be read: {reason}') from error
    if results is None or results.get('img') is None:
        raise ValueError(f'image {file} cannot be read')
    return results['img']


def plain_flag(step: Mapping[str, Any]) -> int | None:
    """Return the flag with which OpenCV reads from a file what a loading step makes of it; None where it differs."""
    others = {key: value for key, value in step.items() if key not in ('type', 'color_type', 'imdecode_backend')}
    if any(others.values()) or step.get('imdecode_backend', 'cv2') != 'cv2':
        return None
    return {'color': cv2.IMREAD_COLOR, 'grayscale': cv2.IMREAD_GRAYSCALE}.get(str(step.get('color_type', 'color')))


def bits_and_channels(file: str | Path) -> tuple[int, int]:
    """Return bits per channel and number of channels without transparency, from the header of a PNG or TIFF.

    Other files count as (8, 3), which is what their loader makes of them.
    """
    with Path(file).open('rb') as stream:
        start = stream.read(32)
        if start.startswith(PNG_SIGNATURE):
            return start[24], PNG_CHANNELS.get(start[25], 3)
        if not start.startswith(TIFF_SIGNATURES):
            return 8, 3
        try:
            stream.seek(0)
            tags = TiffImagePlugin.ImageFileDirectory_v2(stream.read(16 if start[2:3] in b'+\0+' else 8))
            stream.seek(tags.next)
            tags.load(stream)
        except (OSError, SyntaxError, ValueError, TypeError):
            return 8, 3
    bits = tags.get(BITS_PER_SAMPLE, (1,))
    transparent = len(tags.get(EXTRA_SAMPLES, ())) if any(tags.get(EXTRA_SAMPLES, ())) else 0
    return max(bits if isinstance(bits, tuple) else (bits,)), tags.get(SAMPLES_PER_PIXEL, 1) - transparent


def scaled_image(file: str | Path, color_type: str, max_value: float) -> np.ndarray:
    """Read an image of more than 8 bits and scale it, so that `max_value` and what is above it become 255."""
    deep = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if deep is None:
        raise ValueError(f'image {file} cannot be read')
    image = scaled(deep, max_value)
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[:, :, :3]
    if color_type.startswith('grayscale'):
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image


def scaled(values: np.ndarray, max_value: float) -> np.ndarray:
    """Return bytes, `max_value` and what is above it being 255.

    Raises:
        ValueError: For a `max_value` that is not above 0.
    """
    if not max_value > 0:
        raise ValueError(f'max_value={max_value!r}: a number above 0 is expected')
    return np.clip(np.round(values.astype(np.float32) * (255 / max_value)), 0, 255).astype(np.uint8)


def image_of_array(
    array: np.ndarray, step: Mapping[str, Any], channels: int, order: str = 'rgb', max_value: float | None = None
) -> np.ndarray:
    """Return an array of pixels as the recipe's loader would return the file.

    Args:
        array: (H, W, channels), or (H, W) for one channel; bytes from 0 to 255.
        step: The recipe's loading step.
        channels: Channels that the model takes.
        order: 'rgb' or 'bgr', the order of three channels.
        max_value: Value that becomes 255 in an array that is not of bytes.

    Raises:
        ValueError: For an array of another shape or type.
    """
    shown = f'array of shape {array.shape}, {array.dtype}'
    if order not in ('rgb', 'bgr'):
        raise ValueError(f"channel_order={order!r}: 'rgb' or 'bgr' is expected")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f'{shown}: an image (height, width, channels) is expected; several images are a list')
    own_channels = array.shape[2] if array.ndim == 3 else 1
    if own_channels != channels:
        raise ValueError(f'{shown}: the model takes {channels} channel{"s" if channels > 1 else ""}')
    if array.dtype != np.uint8 and not str(step.get('color_type')).startswith('unchanged'):
        if max_value is None:
            raise ValueError(
                f'{shown}: bytes from 0 to 255 (uint8) are expected, or max_value=, the value that becomes 255'
            )
        array = scaled(array, max_value)
    if own_channels == 3 and order == 'rgb':
        array = array[:, :, ::-1]
    array = np.ascontiguousarray(array)
    return array.astype(np.float32) if step.get('to_float32') else array


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return a loaded image, (H, W) or (H, W, C) in BGR, as (H, W, 3) bytes in RGB for drawing.

    Of an image with more or other channels than three, the first is drawn in grey.
    """
    if image.dtype != np.uint8:
        low, high = min(float(image.min()), 0.0), max(float(image.max()), 255.0)
        image = scaled(image - low, high - low)
    if image.ndim == 3 and image.shape[2] == 3:
        return image[:, :, ::-1]
    grey = image if image.ndim == 2 else image[:, :, 0]
    return np.repeat(grey[:, :, None], 3, axis=2)
