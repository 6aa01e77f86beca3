"""Training transforms: the log-uniform scale of the BCN authors, and faster versions of stock transforms.

`PhotoMetricDistortionByTable` gives the pixels of mmseg's transform. `RandomScaledCrop` gives the crops of mmcv's
`RandomResize` followed by mmseg's `RandomCrop`.
"""

import math

import cv2
import mmcv
import numpy as np
from mmcv.image import rescale_size
from mmcv.transforms import BaseTransform, Resize
from mmcv.transforms.utils import cache_randomness
from mmseg.datasets.transforms import PhotoMetricDistortion
from mmseg.registry import TRANSFORMS

from .label_map import IGNORED


@TRANSFORMS.register_module()
class RandomLogScale(BaseTransform):
    """Resize image (H, W, 3) and label map (H, W) by one factor whose logarithm is uniform.

    Halving is then as likely as doubling. mmcv's `RandomResize` draws the factor itself uniformly: from 0.5 to 2, it
    shrinks only a third of the images. Labels are resized by nearest neighbour. Source: `utils.py` of
    chenxi116/DeepLabv3.pytorch, which the BCN authors use; their filter is Pillow's Lanczos.

    Args:
        scale_range: Smallest and largest factor.
        interpolation: Filter for the image, named as `backend` names it.
        backend: `cv2` or `pillow`.

    Raises:
        ValueError: Unless 0 < smallest <= largest.
    """

    def __init__(
        self,
        scale_range: tuple[float, float] = (0.5, 2.0),
        interpolation: str = 'bilinear',
        backend: str = 'cv2',
    ) -> None:
        low, high = scale_range
        if not 0 < low <= high:
            raise ValueError(
                f'scale_range={scale_range!r}: (smallest, largest) with 0 < smallest <= largest is expected'
            )
        self.scale_range = (low, high)
        self.resize = Resize(scale=(1, 1), keep_ratio=False, interpolation=interpolation, backend=backend)

    @cache_randomness
    def random_scale(self) -> float:
        low, high = self.scale_range
        return math.exp(np.random.uniform(math.log(low), math.log(high)))

    def transform(self, results: dict) -> dict:
        height, width = results['img'].shape[:2]
        scale = self.random_scale()
        self.resize.scale = (max(round(width * scale), 1), max(round(height * scale), 1))
        return self.resize(results)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale_range={self.scale_range}, resize={self.resize})'


@TRANSFORMS.register_module()
class PhotoMetricDistortionByTable(PhotoMetricDistortion):
    """mmseg's `PhotoMetricDistortion`, bit for bit, with one lookup table of 256 values per step.

    The original computes every pixel in float32, and the hue in int64.
    """

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        return cv2.LUT(img, super().convert(np.arange(256, dtype=np.uint8), alpha, beta))

    def hue(self, img: np.ndarray) -> np.ndarray:
        if not np.random.randint(2):
            return img
        shift = np.random.randint(-self.hue_delta, self.hue_delta)
        table = ((np.arange(256) + shift) % 180).astype(np.uint8)
        hsv = mmcv.bgr2hsv(img)
        hsv[:, :, 0] = cv2.LUT(hsv[:, :, 0], table)
        return mmcv.hsv2bgr(hsv)


@TRANSFORMS.register_module()
class RandomScaledCrop(BaseTransform):
    """Crop a random window of the randomly resized image and its labels.

    It is equivalent to mmcv's `RandomResize(keep_ratio=True)` followed by mmseg's `RandomCrop`, from the same random
    numbers: the window and the labels are equal, pixels differ by at most 1 through rounding. The window is chosen on
    the labels. Only this window of the image is resized.

    Args:
        scale: (width, height) that an image fits into at ratio 1, with its aspect ratio kept.
        ratio_range: Smallest and largest factor of `scale`, drawn uniformly.
        crop_size: (height, width) of the crop; smaller where the resized image is smaller.
        cat_max_ratio: The window is redrawn, up to 10 times, while one class has at least this share of its labelled
            pixels.

    Raises:
        ValueError: For sizes, ratios or shares out of range. When called: for a sample without labels, or with labels
            of another size than the image.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        ratio_range: tuple[float, float],
        crop_size: tuple[int, int],
        cat_max_ratio: float = 1.0,
    ) -> None:
        if min(scale) < 1 or min(crop_size) < 1:
            raise ValueError(f'scale={scale}, crop_size={crop_size}: two positive numbers of pixels each are expected')
        if not 0 < ratio_range[0] <= ratio_range[1]:
            raise ValueError(f'ratio_range={ratio_range}: 0 < smallest <= largest is expected')
        if not 0 < cat_max_ratio <= 1:
            raise ValueError(f'cat_max_ratio={cat_max_ratio}: a share in (0, 1] is expected')
        self.scale = tuple(scale)
        self.ratio_range = tuple(ratio_range)
        self.crop_size = tuple(crop_size)
        self.cat_max_ratio = cat_max_ratio

    def transform(self, results: dict) -> dict:
        image, labels = results['img'], results.get('gt_seg_map')
        if labels is None:
            raise ValueError(f'{results.get("img_path")} has no labels: RandomScaledCrop chooses the window on them')
        size = image.shape[:2]
        if labels.shape != size:
            raise ValueError(
                f'{results.get("img_path")} is {size[0]} x {size[1]} (height x width), its label file '
                f'{results.get("seg_map_path")} {labels.shape[0]} x {labels.shape[1]}'
            )
        scale = self.random_scale()
        width, height = rescale_size(size[::-1], scale)
        resized_labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        rows, columns = self.random_window(resized_labels)
        results['img'] = resized_window(image, (height, width), rows, columns)
        results['gt_seg_map'] = resized_labels[rows, columns]
        results['img_shape'] = results['img'].shape[:2]
        results['scale'] = scale
        results['scale_factor'] = (width / size[1], height / size[0])
        results['keep_ratio'] = True
        return results

    def random_scale(self) -> tuple[int, int]:
        """Draw the (width, height) that the whole image fits into."""
        low, high = self.ratio_range
        ratio = np.random.random_sample() * (high - low) + low
        return int(self.scale[0] * ratio), int(self.scale[1] * ratio)

    def random_window(self, labels: np.ndarray) -> tuple[slice, slice]:
        """Draw the rows and columns of the crop in the resized image with these labels (H, W)."""
        window = self._draw_window(*labels.shape)
        if self.cat_max_ratio < 1:
            for _ in range(10):
                if largest_share(labels[window]) < self.cat_max_ratio:
                    break
                window = self._draw_window(*labels.shape)
        return window

    def _draw_window(self, height: int, width: int) -> tuple[slice, slice]:
        rows, columns = min(self.crop_size[0], height), min(self.crop_size[1], width)
        top = np.random.randint(0, height - rows + 1)
        left = np.random.randint(0, width - columns + 1)
        return slice(top, top + rows), slice(left, left + columns)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(scale={self.scale}, ratio_range={self.ratio_range}, crop_size={self.crop_size}, '
            f'cat_max_ratio={self.cat_max_ratio})'
        )


def largest_share(labels: np.ndarray) -> float:
    """Return the share of the most frequent class among the labelled pixels of (H, W) uint8; 1 if none is labelled."""
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    counts[IGNORED] = 0
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def resized_window(image: np.ndarray, size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """Return the window `rows` x `columns` of the image resized to `size` (height, width), without computing the rest.

    Pixel x of the result samples the image at (x + 1/2) * step - 1/2, where step is the ratio of the two sizes. It is
    interpolated between its two neighbours. At the borders the last pixel is repeated.
    """
    step_y, step_x = image.shape[0] / size[0], image.shape[1] / size[1]
    y, x = (rows.start + 0.5) * step_y - 0.5, (columns.start + 0.5) * step_x - 0.5
    window = (columns.stop - columns.start, rows.stop - rows.start)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        image, np.array([[step_x, 0, x], [0, step_y, y]]), window, flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
