"""Transforms of one clip; each processes all frames in a single call.

Legend: V views (temporal clips x spatial crops; 1 in training), T frames, C = 3 channels, H and W pixels.

A transform takes and returns a dictionary:

* the dataset sets `path`, `label` (int), `sample_idx`, `mirrored_label` if class names are known, and `num_frames` and
  `size` (height, width) if there is a manifest;
* `DecodeClip` adds `clips`, a uint8 tensor (V, T, C, H, W) in the decoder's channels-last memory order (torchvision
  resizes it three times as fast), `frame_indices`, `total_frames`, `fps`, and `complaints`, the decoder's messages
  about damage that it concealed.

Random numbers come from torch's global generator, which the loader seeds in every worker.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import torch
from mmengine.registry import TRANSFORMS
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ...engine.data.left_right import mirror_labels as mirror_labels
from ..decoding.reader import check_backend, check_deadline, decode_error, open_video
from .samples import ClipDataSample
from .sampling import get_sampler

Results = dict[str, Any]


@TRANSFORMS.register_module()
class DecodeClip:
    """Choose frames and read them: `path` -> `clips` (num_clips, T, C, H, W).

    With a manifest, frames are chosen among its `num_frames`, whatever the container claims. An item that the dataset
    marked as `unreadable` is not opened; it gets black frames of the size in the manifest.

    Args:
        sampler: `dict(type='dense', clip_len=, interval=, num_clips=1, short='loop')` or
            `dict(type='segments', num_segments=, num_clips=1)`; see `wsbcn_mm.video.data.sampling`.
        random: Whether frames are drawn at random (training) or placed evenly (validation, test).
        backend: 'decord', 'pyav', or 'frames' for folders of images.
        deadline: Seconds for a video or a folder. A video is decoded in a separate process, which is killed at the
            deadline. None decodes in the loader's process, which hangs forever if a file makes the decoder hang.
        options: Passed to `open_video`: `template` and `start` of a folder of images.

    Raises:
        ValueError: For an unknown sampler, argument, backend or option.
        DecodeError: When called on a video that cannot be read, or not in time, or that no longer has the manifest's
            frames.
    """

    def __init__(
        self,
        sampler: Mapping[str, Any],
        *,
        random: bool,
        backend: str = 'decord',
        deadline: float | None = 20.0,
        **options: Any,
    ) -> None:
        check_backend(backend, options)
        check_deadline(deadline)
        self.sampler, self.arguments = get_sampler(dict(sampler))
        self.random = random
        self.backend = backend
        self.deadline = deadline
        self.options = options

    def __call__(self, results: Results) -> Results:
        if results.get('unreadable'):
            num_clips, clip_len = self._choose(1).shape
            results['clips'] = torch.zeros(num_clips, clip_len, 3, *results.get('size', BLANK_SIZE), dtype=torch.uint8)
            return results
        reader = open_video(results['path'], self.backend, deadline=self.deadline, **self.options)
        total = results.get('num_frames', len(reader))
        if total > len(reader):
            reason = f'{len(reader)} frames, {total} in the manifest: the file changed, prepare the data again'
            raise decode_error(reader.path, self.backend, reason)
        indices = self._choose(total)
        frames = reader.get_frames(indices.flatten())
        results['clips'] = frames.unflatten(0, indices.shape).permute(0, 1, 4, 2, 3)
        results['frame_indices'] = indices.tolist()
        results['total_frames'] = total
        results['fps'] = reader.fps
        results['complaints'] = reader.complaints
        return results

    def _choose(self, total: int) -> Tensor:
        return self.sampler(total, **self.arguments, random=self.random)


BLANK_SIZE = (256, 340)
"""Height and width of the black frames of a clip without a manifest."""


@TRANSFORMS.register_module()
class ResizeClip:
    """Resize all frames, bilinear and antialiased.

    Args:
        size: An int for the short side, which keeps the aspect ratio, or (height, width).
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = [size] if isinstance(size, int) else list(size)
        if len(self.size) not in (1, 2) or min(self.size) < 1:
            raise ValueError(f'size={size!r}: a positive int (short side) or (height, width) is expected')

    def __call__(self, results: Results) -> Results:
        results['clips'] = F.resize(results['clips'], self.size, antialias=True)
        return results


@TRANSFORMS.register_module()
class RandomResizedCropClip:
    """Crop a random rectangle, the same in every frame, and resize it to a square.

    After ten failed tries, the largest centred rectangle within the ratio limits is used, as in torchvision's
    `RandomResizedCrop`.

    Args:
        size: Side of the result in pixels.
        scale: Smallest and largest share of the frame's area.
        ratio: Smallest and largest width / height.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f'scale={scale}: 0 < smallest <= largest <= 1 is expected')
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f'ratio={ratio}: 0 < smallest <= largest is expected')
        self.size = size
        self.scale = scale
        self.ratio = ratio

    def __call__(self, results: Results) -> Results:
        clips = results['clips']
        top, left, height, width = self.rectangle(*clips.shape[-2:])
        results['clips'] = F.resized_crop(clips, top, left, height, width, [self.size, self.size], antialias=True)
        return results

    def rectangle(self, frame_height: int, frame_width: int) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width), in pixels."""
        for _ in range(10):
            area = _uniform(*self.scale) * frame_height * frame_width
            ratio = math.exp(_uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= frame_height and 0 < width <= frame_width:
                return _randint(frame_height - height + 1), _randint(frame_width - width + 1), height, width
        height = min(frame_height, max(1, round(frame_width / self.ratio[0])))
        width = min(frame_width, max(1, round(frame_height * self.ratio[1])))
        return (frame_height - height) // 2, (frame_width - width) // 2, height, width


@TRANSFORMS.register_module()
class MultiScaleCropClip:
    """TSN's corner cropping with scale jitter (Wang et al. 2016, section 3.2), the augmentation of TSM.

    The sides of the crop are the frame's short side times two of `scales`, at most `max_distort` steps apart. The crop
    is at one of 13 places (corners, edges, centre, quarter points), and is resized to a square.

    Args:
        size: Side of the result in pixels.
        scales: Factors of the short side, in descending order.
        max_distort: Largest number of steps between the two factors.
    """

    def __init__(self, size: int, scales: Sequence[float] = (1.0, 0.875, 0.75, 0.66), max_distort: int = 1) -> None:
        if not scales or not 0 < min(scales) <= max(scales) <= 1:
            raise ValueError(f'scales={scales!r}: factors in (0, 1] are expected')
        self.size = size
        self.pairs = [
            (first, second)
            for i, first in enumerate(scales)
            for j, second in enumerate(scales)
            if abs(i - j) <= max_distort
        ]

    def __call__(self, results: Results) -> Results:
        clips = results['clips']
        frame_height, frame_width = clips.shape[-2:]
        short = min(frame_height, frame_width)
        height, width = (max(1, int(short * scale)) for scale in self.pairs[_randint(len(self.pairs))])
        row, column = PLACES[_randint(len(PLACES))]
        top, left = (frame_height - height) * row // 4, (frame_width - width) * column // 4
        results['clips'] = F.resized_crop(clips, top, left, height, width, [self.size, self.size], antialias=True)
        return results


PLACES = [(row, column) for row in (0, 2, 4) for column in (0, 2, 4)] + [(1, 1), (1, 3), (3, 1), (3, 3)]


@TRANSFORMS.register_module()
class CenterCropClip:
    """Crop the central `size` x `size` square.

    Raises:
        ValueError: When called on smaller frames; resize first.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, results: Results) -> Results:
        clips = results['clips']
        _check_fits(clips, self.size, results)
        results['clips'] = F.center_crop(clips, [self.size, self.size])
        return results


@TRANSFORMS.register_module()
class ThreeCropClip:
    """Crop three `size` x `size` squares along the longer side: start, centre, end (SlowFast's spatial test views).

    (V, T, C, H, W) -> (3 V, T, C, size, size); the crops of one temporal clip are adjacent.

    Raises:
        ValueError: When called on smaller frames; resize first.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, results: Results) -> Results:
        clips = results['clips']
        _check_fits(clips, self.size, results)
        free_rows, free_columns = (side - self.size for side in clips.shape[-2:])
        along_rows = free_rows > free_columns
        crops = []
        for third in range(3):
            top = free_rows * third // 2 if along_rows else free_rows // 2
            left = free_columns // 2 if along_rows else free_columns * third // 2
            crops.append(clips[..., top : top + self.size, left : left + self.size])
        results['clips'] = torch.stack(crops, dim=1).flatten(0, 1)
        return results


@TRANSFORMS.register_module()
class FlipClip:
    """Mirror all frames left to right with probability `prob`.

    With `swap_labels`, a mirrored "from left to right" becomes "from right to left": the label follows the frames, and
    a clip whose mirrored class does not exist is never mirrored. Something-Something datasets reject a flip without it.

    Args:
        prob: Probability.
        swap_labels: Whether to exchange the labels of classes that a mirror exchanges.
    """

    def __init__(self, prob: float = 0.5, swap_labels: bool = False) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f'prob={prob}: a probability in [0, 1] is expected')
        self.prob = prob
        self.swap_labels = swap_labels

    def __call__(self, results: Results) -> Results:
        if self.swap_labels and 'mirrored_label' not in results:
            raise ValueError('FlipClip(swap_labels=True) needs a dataset with class names')
        if self.swap_labels and results['mirrored_label'] is None:
            return results
        if torch.rand(()) < self.prob:
            results['clips'] = F.horizontal_flip(results['clips'])
            if self.swap_labels:
                results['label'], results['mirrored_label'] = results['mirrored_label'], results['label']
        return results


@TRANSFORMS.register_module()
class PackClipInputs:
    """Pack the results of a pipeline: `dict(inputs=(V, C, T, H, W) uint8, data_samples=ClipDataSample)`.

    Args:
        meta_keys: Entries to copy to the sample's meta information, if present.
    """

    def __init__(
        self, meta_keys: Sequence[str] = ('path', 'sample_idx', 'frame_indices', 'total_frames', 'fps', 'unreadable')
    ) -> None:
        self.meta_keys = meta_keys

    def __call__(self, results: Results) -> Results:
        sample = ClipDataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        sample.gt_label = torch.tensor(results['label'])
        return dict(inputs=_channels_first(results['clips']), data_samples=sample)


def _channels_first(clips: Tensor) -> Tensor:
    """Convert channels-last (V, T, C, H, W) to contiguous (V, C, T, H, W); OpenCV is nine times as fast as torch."""
    num_views, length, channels, height, width = clips.shape
    packed = clips.new_empty(num_views, channels, length, height, width)
    for view, planes in zip(clips, packed.flatten(2, 3), strict=True):
        pixels = view.permute(0, 2, 3, 1).reshape(-1, width, channels)
        cv2.split(pixels.numpy(), [plane.numpy() for plane in planes])
    return packed


def _check_fits(clips: Tensor, size: int, results: Results) -> None:
    height, width = clips.shape[-2:]
    if min(height, width) < size:
        raise ValueError(
            f'a crop of {size} x {size} does not fit frames of {height} x {width} (height x width) '
            f'of {results.get("path")!r}: resize first'
        )


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _randint(count: int) -> int:
    return int(torch.randint(count, ()))
