"""Boundary IoU: intersection over union of the pixels near the boundaries of each class.

Source: Cheng et al., *Boundary IoU: Improving Object-Centric Image Segmentation Evaluation*, CVPR 2021 (arXiv
2103.16562), and its API. The boundary region of a mask is the mask minus its erosion by a 3x3 square, iterated d times,
where d is a share of the image's diagonal. Pixels outside the image are not part of the mask.

Departure: the paper scores masks of objects. Here each class of a label map is a mask, and pixels are summed over the
whole dataset before the division, as for mIoU.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def boundary_distance(shape: Sequence[int], ratio: float) -> int:
    """Return the width d of the boundary region in pixels, at least 1, for images of this (H, W)."""
    return max(1, round(ratio * math.hypot(*shape)))


def boundary_region(labels: Tensor, distance: int) -> Tensor:
    """Return the pixels that an erosion of their own class by `distance` removes.

    A pixel survives if the square of side 2 * distance + 1 around it is inside the image and contains only its class.
    This holds for all classes at once if no two neighbours in the square differ. Two summed-area tables answer that,
    at a cost that depends on neither the distance nor the number of classes.

    Args:
        labels: (H, W) class ids, all >= 0.
        distance: Width of the region in pixels.

    Returns:
        (H, W) bool.
    """
    padded = F.pad(labels.long(), (1, 1, 1, 1), value=-1)
    across = _sums_in_squares(padded[:, 1:] != padded[:, :-1], labels.shape, distance, wide=0)
    down = _sums_in_squares(padded[1:] != padded[:-1], labels.shape, distance, high=0)
    return (across + down) > 0


def _sums_in_squares(changes: Tensor, shape: torch.Size, distance: int, *, high: int = 1, wide: int = 1) -> Tensor:
    """Count the changes between neighbours within the square around each pixel, (H, W).

    `changes` is (H + 1 + high, W + 1 + wide), for the image with a frame of one pixel. Along the compared direction (0)
    there is one change fewer than pixels.
    """
    table = F.pad(changes.int().cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0))

    def limits(pixels: int, extra: int) -> tuple[Tensor, Tensor]:
        centre = torch.arange(1, pixels + 1, device=changes.device)
        first, last = centre - distance, centre + distance + extra
        return first.clamp(min=0), last.clamp(max=pixels + 1 + extra)

    top, bottom = limits(shape[0], high)
    left, right = limits(shape[1], wide)
    below, above = table[bottom], table[top]
    return below[:, right] - below[:, left] - above[:, right] + above[:, left]


def boundary_counts(truth: Tensor, predicted: Tensor, counted: Tensor, num_classes: int, distance: int) -> Tensor:
    """Return intersection and union of the two boundary regions of each class.

    Pixels that are not counted belong to no class in either map, so both maps have a boundary around them.

    Args:
        truth: (H, W) class ids.
        predicted: (H, W) class ids.
        counted: (H, W) bool, False where the truth is ignored.
        num_classes: K; counted ids must be 0 to K - 1.
        distance: Width of the boundary region in pixels.

    Returns:
        (2, K) int64, in pixels.
    """
    truth, predicted = (labels.long().where(counted, num_classes) for labels in (truth, predicted))
    of_truth, of_prediction = (
        labels.where(boundary_region(labels, distance), num_classes) for labels in (truth, predicted)
    )
    both = of_truth.where(of_truth == of_prediction, num_classes)
    sizes = [labels.flatten().bincount(minlength=num_classes + 1) for labels in (of_truth, of_prediction, both)]
    return torch.stack([sizes[2], sizes[0] + sizes[1] - sizes[2]])[:, :num_classes]
