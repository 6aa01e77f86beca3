"""Images for the tests of the transforms."""

import cv2
import numpy as np


def textured(height: int, width: int) -> np.ndarray:
    """Smooth colours with fine noise, which show wrong positions and wrong rounding."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth.astype(int) + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
