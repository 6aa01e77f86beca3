"""mmseg's photometric distortion by tables."""

import cv2
import mmcv
import numpy as np
from mmseg.datasets.transforms import PhotoMetricDistortion
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PhotoMetricDistortionByTable(PhotoMetricDistortion):
    """mmseg's `PhotoMetricDistortion`, bit for bit: the result for each of the 256 values is looked up.

    The original computes on every pixel in float32, and for the hue in int64.
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
