"""Training transforms of the BCN authors' DeepLabV3 recipe that mmcv and mmseg lack."""

import math

import numpy as np
from mmcv.transforms import BaseTransform, Resize
from mmcv.transforms.utils import cache_randomness
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomLogScale(BaseTransform):
    """Resize image (H, W, 3) and label map (H, W) by one factor whose logarithm is uniform.

    Halving is then as likely as doubling; mmcv's `RandomResize` draws the factor itself uniformly, which shrinks an
    image a third of the time for 0.5 to 2. Labels are resized by nearest neighbour. Source: `utils.py` of
    chenxi116/DeepLabv3.pytorch, which the BCN authors use; their filter is Pillow's Lanczos.

    Args:
        scale_range: Smallest and largest factor.
        interpolation: Filter for the image, a name of `backend`.
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
