"""Clips for a trained model: frames of files, folders or arrays, chosen as the recipe's test chooses them."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

from ...engine.inference.inputs import IMAGES
from ..data.sampling import get_sampler
from ..decoding.reader import open_video

DECODER = 'DecodeClip'

CHUNK_BYTES = 2**27
"""Frames that are read at once."""


class Frames(NamedTuple):
    """The frames of a video, which are read when asked for.

    Attributes:
        source: File or folder; None for an array.
        total: Number of frames.
        fps: Frames per second; None where the source does not say.
        read: Frame numbers -> (T, H, W, 3) uint8 RGB.
        complaints: What the decoder has said about damage so far.
    """

    source: str | None
    total: int
    fps: float | None
    read: Callable[[Tensor], Tensor]
    complaints: list[str]


def frames_of_array(array: np.ndarray) -> Frames:
    """Return the frames of an array (T, H, W, 3) of bytes in RGB.

    Raises:
        ValueError: For an array of another shape or type.
    """
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise ValueError(
            f'array of shape {array.shape}, {array.dtype}: a video (frames, height, width, 3) of bytes in RGB is '
            'expected; several videos are a list'
        )
    pixels = torch.from_numpy(np.ascontiguousarray(array))
    return Frames(None, len(array), None, lambda indices: pixels[indices], [])


def frames_of_file(path: str | Path, decoder: Mapping[str, Any], *, deadline: float | None) -> Frames:
    """Open a video file, or a folder of numbered images, with the backend of a recipe's `DecodeClip`.

    A recipe that reads folders reads files with decord, one that reads files reads folders whose images are numbered.

    Raises:
        DecodeError: If it cannot be read.
        ValueError: For a folder without numbered images.
    """
    keys = ('type', 'sampler', 'random', 'backend', 'deadline')
    options = {key: value for key, value in decoder.items() if key not in keys}
    backend = decoder.get('backend', 'decord')
    if Path(path).is_dir():
        if backend != 'frames' or not has_template(Path(path), options.get('template', '{:05d}.jpg')):
            backend, options = 'frames', numbering(Path(path))
    elif backend == 'frames':
        backend, options = 'decord', {}
    # Absolute: the process that decodes may have started in another working directory.
    reader = open_video(os.path.abspath(path), backend, deadline=deadline, **options)
    return Frames(str(path), len(reader), reader.fps, reader.get_frames, reader.complaints)


def has_template(folder: Path, template: str) -> bool:
    """Whether a folder has a file that a template such as '{:05d}.jpg' names."""
    before, _, after = template.partition('{')
    pattern = re.compile(re.escape(before) + '[0-9]+' + re.escape(after.partition('}')[2]))
    return any(pattern.fullmatch(entry.name) for entry in folder.iterdir())


def numbering(folder: Path) -> dict[str, Any]:
    """Return `template` and `start` of the numbered images in a folder.

    Raises:
        ValueError: If it has no image whose name ends in a number.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in IMAGES)
    found = [match for match in (re.fullmatch(r'(.*?)([0-9]+)(\.\w+)', name) for name in names) if match]
    if not found:
        raise ValueError(f'folder {str(folder)!r} has no numbered images, such as 00001.jpg, 00002.jpg')
    before, number, after = min(found, key=lambda match: int(match[2])).groups()
    width = f'0{len(number)}d' if len({len(match[2]) for match in found}) == 1 else 'd'
    return dict(template=f'{before}{{:{width}}}{after}', start=int(number))


class Sampler:
    """The frame sampler of a recipe's `DecodeClip`.

    Args:
        decoder: The step's config.
        one_view: Whether to take a single clip in time, as for a window, in place of the recipe's number.
    """

    def __init__(self, decoder: Mapping[str, Any], *, one_view: bool = False) -> None:
        config = dict(decoder['sampler'])
        if one_view:
            config.pop('num_clips', None)
        self._choose, self._arguments = get_sampler(config)

    @property
    def span(self) -> int | None:
        """Frames that a dense clip spans; None for segments, which span any number."""
        if 'clip_len' not in self._arguments:
            return None
        return (self._arguments['clip_len'] - 1) * self._arguments['interval'] + 1

    def __call__(self, total: int) -> Tensor:
        """Return (views, T) frame numbers in a video of `total` frames."""
        return self._choose(total, **self._arguments, random=False)


def starts(total: int, window: int, step: int) -> Iterator[int]:
    """Yield the first frames of windows over `total` frames; the last window ends with the video."""
    last = max(total - window, 0)
    yield from range(0, last, step)
    yield last


def read_in_order(frames: Frames, wanted: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the frames of each of several lists of numbers, (T, H, W, 3), and decode no frame twice.

    The lists overlap, as windows do, and begin at ascending numbers. Decoders that must go back start again at a key
    frame, so that frames are read once, in ascending order, and kept while a later list may need them.
    """
    order = sorted({number for numbers in wanted for number in numbers.tolist()})
    kept: dict[int, Tensor] = {}
    at, count = 0, 1
    for numbers, following in zip(wanted, [*wanted[1:], None], strict=True):
        while not kept.keys() >= set(numbers.tolist()):
            read = frames.read(torch.tensor(order[at : at + count]))
            kept.update(zip(order[at : at + count], read, strict=True))
            at += count
            count = max(CHUNK_BYTES // read[0].nbytes, 1)
        yield torch.stack([kept[number] for number in numbers.tolist()])
        if following is not None:
            first = int(following.min())
            kept = {number: frame for number, frame in kept.items() if number >= first}


def all_in_order(frames: Frames) -> Iterator[np.ndarray]:
    """Yield all frames, each (H, W, 3), and hold few at a time.

    A file is decoded once from its start, since a reader of numbered frames seeks for each part that it reads.
    """
    if frames.source is None or Path(frames.source).is_dir():
        for number in range(frames.total):
            yield from frames.read(torch.tensor([number])).numpy()
        return
    with av.open(frames.source) as container:
        for frame in container.decode(container.streams.best('video')):
            yield np.rot90(frame.to_ndarray(format='rgb24'), frame.rotation // 90 % 4)
