"""Read frames by number from a video file or a folder of images, with any of several libraries.

`open_video` returns a reader with `len(reader)`, `reader.fps` and `reader.get_frames(indices)`. Frame k is the k-th
frame in display order for every backend. Any failure, while opening or later while reading, is a `DecodeError` that
names the file and the backend.

The backends are 'decord' (default; decord or decord2, one thread, because loader workers already fill the cores),
'pyav', and 'frames' for folders. All return the same frames, and the first two the same pixels.

With a deadline, videos are decoded in a separate process (`video.decoding.process`), which is killed at the deadline.
Images in a folder have no container that could mislead a decoder. They are read in this process, in a thread that is
abandoned if a file or a drive never answers.
"""

import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .child.readers import READERS, reason
from .process import DecoderStartError, decoder_process


class DecodeError(RuntimeError):
    """A video cannot be opened, or a frame cannot be read; the text names file, backend and reason."""


def decode_error(path: str, backend: str, reason: str) -> DecodeError:
    """Return the error for a file that cannot be read."""
    return DecodeError(f'cannot decode {path!r} with {backend}: {reason}')


class _Source(NamedTuple):
    num_frames: int
    fps: float | None
    read: Callable[[list[int]], Tensor]


class VideoReader:
    """An open video, created by `open_video`.

    Attributes:
        path: File or folder.
        backend: Name of the backend.
        fps: Frames per second; None if unknown (folders of images).
        complaints: Messages of the decoding library about the file so far: errors that it concealed with neighbouring
            pixels or frames. Always empty without a deadline, as they go to standard error then.
    """

    def __init__(self, path: str, backend: str, source: _Source, complaints: list[str]) -> None:
        self.path = path
        self.backend = backend
        self.fps = source.fps
        self.complaints = complaints
        self._num_frames = source.num_frames
        self._read = source.read

    def __len__(self) -> int:
        return self._num_frames

    def get_frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Read frames by number, in the given order; repeats are allowed.

        Returns:
            (T, H, W, 3) uint8 RGB, contiguous.

        Raises:
            ValueError: For an empty list, or an index outside `[0, len(self))`.
            DecodeError: If a frame cannot be read.
        """
        wanted = [int(i) for i in indices]
        if not wanted:
            raise ValueError(f'indices=[]: at least one frame of {self.path!r} is expected')
        if min(wanted) < 0 or max(wanted) >= len(self):
            raise ValueError(f'indices={wanted}: frames 0 to {len(self) - 1} of {self.path!r} are expected')
        try:
            frames = self._read(wanted)
        except DecoderStartError:
            raise
        except Exception as error:
            raise decode_error(self.path, self.backend, reason(error)) from error
        if frames.shape[0] != len(wanted):
            lost = f'{len(wanted)} frames requested, {frames.shape[0]} returned'
            raise decode_error(self.path, self.backend, lost)
        return frames


def open_video(
    path: str | os.PathLike[str], backend: str = 'decord', *, deadline: float | None = None, **options: Any
) -> VideoReader:
    """Open a video for reading frames by number.

    Args:
        path: Video file, or folder of images for `backend='frames'`.
        backend: 'decord', 'pyav' or 'frames'.
        deadline: Seconds for opening and all reading. After it, the process that decodes a video is killed, and the
            thread that reads images is abandoned. None decodes in this process.
        options: Only for 'frames': `template` (default '{:05d}.jpg') and `start`, the number of the first image
            (default 1).

    Raises:
        ValueError: For an unknown backend or option, or a deadline that is not positive.
        DecodeError: If the file is missing, empty, not a video, damaged, or not decoded in time, or the backend is not
            installed.
        DecoderStartError: If the decoding process cannot be started.
    """
    check_backend(backend, options)
    check_deadline(deadline)
    path, complaints = os.fspath(path), list[str]()
    try:
        if backend == 'frames':
            source = _open_frames(path, **options) if deadline is None else _open_frames_aside(path, deadline, options)
        elif deadline is None:
            source = _open_here(path, backend)
        else:
            source = _open_elsewhere(path, backend, deadline, complaints)
        if source.num_frames < 1:
            raise ValueError('no frames')
    except DecoderStartError:
        raise
    except Exception as error:
        raise decode_error(path, backend, reason(error)) from error
    return VideoReader(path, backend, source, complaints)


def check_backend(backend: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown backend, or an option that it does not accept."""
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r}: one of {", ".join(sorted(BACKENDS))} is expected')
    unknown = set(options) - ({'template', 'start'} if backend == 'frames' else set())
    if unknown:
        raise ValueError(f'backend={backend!r} does not accept the options {", ".join(sorted(unknown))}')
    if 'template' in options:
        _template_pattern(options['template'])


def check_deadline(deadline: float | None) -> None:
    """Raise ValueError for a deadline that is neither None nor positive."""
    if deadline is not None and not deadline > 0:
        raise ValueError(f'deadline={deadline!r}: seconds above 0, or None for no deadline, are expected')


def _open_here(path: str, backend: str) -> _Source:
    source = READERS[backend](path)

    def read(indices: list[int]) -> Tensor:
        return torch.from_numpy(source.read(indices, _new_array))

    weakref.finalize(read, source.close)
    return _Source(source.num_frames, source.fps, read)


def _new_array(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


def _open_elsewhere(path: str, backend: str, deadline: float, complaints: list[str]) -> _Source:
    """Open in this thread's decoding process, which has `deadline` seconds for all requests about this file."""
    process = decoder_process()
    timed = _timer(deadline, f'not decoded within {deadline:g} s, the decoding process was killed')

    def ask(request: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return timed(lambda left: request(backend, path, *arguments, left))
        finally:
            complaints.extend(process.complaints)

    num_frames, fps = ask(process.open)
    return _Source(num_frames, fps, lambda indices: ask(process.read, indices))


def _open_frames_aside(path: str, deadline: float, options: Mapping[str, Any]) -> _Source:
    """Open in threads that have `deadline` seconds together."""
    timed = _timer(deadline, f'not decoded within {deadline:g} s')
    source = timed(lambda left: _call_aside(lambda: _open_frames(path, **options), left))
    return _Source(
        source.num_frames,
        source.fps,
        lambda indices: timed(lambda left: _call_aside(lambda: source.read(indices), left)),
    )


def _timer(seconds: float, reason: str) -> Callable[[Callable[[float], Any]], Any]:
    """Return a function that calls others with the remaining seconds, and raises TimeoutError with `reason`."""
    left = seconds

    def timed(function: Callable[[float], Any]) -> Any:
        nonlocal left
        start = time.monotonic()
        try:
            return function(left)
        except TimeoutError:
            raise TimeoutError(reason) from None
        finally:
            left -= time.monotonic() - start

    return timed


def _call_aside(function: Callable[[], Any], seconds: float) -> Any:
    """Call in a thread, which is cheaper than a process and suffices if Python's lock is released while waiting."""
    result = Future[Any]()

    def call() -> None:
        try:
            result.set_result(function())
        except Exception as error:
            result.set_exception(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(max(seconds, 0))
    if thread.is_alive():
        raise TimeoutError
    return result.result()


def _open_frames(path: str, template: str = '{:05d}.jpg', start: int = 1) -> _Source:
    from torchvision.io import ImageReadMode, decode_image

    is_frame = _template_pattern(template)
    names = {name for name in os.listdir(path) if is_frame.fullmatch(name)}
    for number in range(start, start + len(names)):
        if template.format(number) not in names:
            raise ValueError(f'{template.format(number)!r} is missing ({len(names)} files match {template!r})')

    def read(indices: list[int]) -> Tensor:
        images = {}
        for index in set(indices):
            name = template.format(start + index)
            try:
                images[index] = decode_image(os.path.join(path, name), mode=ImageReadMode.RGB).permute(1, 2, 0)
            except RuntimeError as error:
                raise ValueError(f'{name}: {reason(error)}') from error
        sizes = {tuple(image.shape[:2]) for image in images.values()}
        if len(sizes) > 1:
            raise ValueError(f'frames of different sizes (height, width): {sorted(sizes)}')
        return torch.stack([images[i] for i in indices]).contiguous()

    return _Source(len(names), None, read)


def _template_pattern(template: str) -> re.Pattern[str]:
    parts = re.fullmatch(r'([^{}]*){[^{}]*}([^{}]*)', template)
    if parts is None:
        raise ValueError(f"template={template!r}: exactly one number field such as '{{:05d}}' is expected")
    prefix, suffix = parts.groups()
    return re.compile(f'{re.escape(prefix)}[0-9]+{re.escape(suffix)}')


BACKENDS = (*READERS, 'frames')
