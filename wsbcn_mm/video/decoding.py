"""Frames by number from a video file or a folder of images, whichever library reads them.

``open_video`` gives a reader with ``len(reader)``, ``reader.fps`` and ``reader.get_frames(indices)``. Frame k is the
k-th frame in display order for every backend, and whatever goes wrong underneath, while opening or later while reading,
is a ``DecodeError`` that names the file and the backend.

Backends: ``'decord'`` (default; decord or decord2, one thread, because loader workers already fill the cores),
``'pyav'``, and ``'frames'`` for folders.
"""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class DecodeError(RuntimeError):
    """A video cannot be opened or a frame cannot be read; the text names file, backend and reason."""


class _Source(NamedTuple):
    num_frames: int
    fps: float | None
    read: Callable[[list[int]], Tensor]


class VideoReader:
    """An open video; made by ``open_video``.

    Attributes:
        path: file or folder.
        backend: name of the backend.
        fps: frames per second; None where the source does not say (folders of images).
    """

    def __init__(self, path: str, backend: str, source: _Source) -> None:
        self.path = path
        self.backend = backend
        self.fps = source.fps
        self._num_frames = source.num_frames
        self._read = source.read

    def __len__(self) -> int:
        return self._num_frames

    def get_frames(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Read frames by number, in the order asked for; repeats are allowed.

        Returns:
            (T, H, W, 3) uint8 RGB, contiguous.

        Raises:
            ValueError: for an empty list or an index outside ``[0, len(self))``.
            DecodeError: if a frame cannot be read.
        """
        wanted = [int(i) for i in indices]
        if not wanted:
            raise ValueError(f'indices=[]: at least one frame of {self.path!r} must be asked for')
        if min(wanted) < 0 or max(wanted) >= len(self):
            raise ValueError(f'indices={wanted}: {self.path!r} has frames 0 to {len(self) - 1}')
        try:
            frames = self._read(wanted)
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(_message(self.path, self.backend, _reason(error))) from error
        if frames.shape[0] != len(wanted):
            reason = f'{len(wanted)} frames asked for, {frames.shape[0]} returned'
            raise DecodeError(_message(self.path, self.backend, reason))
        return frames


def open_video(path: str | os.PathLike[str], backend: str = 'decord', **options: Any) -> VideoReader:
    """Open a video for reading frames by number.

    Args:
        path: video file, or folder of images for ``backend='frames'``.
        backend: ``'decord'``, ``'pyav'`` or ``'frames'``.
        options: for ``'frames'`` only: ``template`` (default ``'{:05d}.jpg'``) and ``start``, the number of the first
            image (default 1).

    Raises:
        ValueError: for an unknown backend or option.
        DecodeError: if the file is missing, empty, no video, damaged, or the backend is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r}: accepted are {sorted(BACKENDS)}')
    unknown = set(options) - ({'template', 'start'} if backend == 'frames' else set())
    if unknown:
        raise ValueError(f'options {sorted(unknown)} are not known to backend {backend!r}')
    if 'template' in options:
        _template_pattern(options['template'])
    path = os.fspath(path)
    try:
        if backend != 'frames' and os.path.getsize(path) == 0:
            raise ValueError('the file is empty')
        source = BACKENDS[backend](path, **options)
        if source.num_frames < 1:
            raise ValueError('no frames')
    except DecodeError:
        raise
    except FileNotFoundError as error:
        raise DecodeError(_message(path, backend, 'no such file or folder')) from error
    except ImportError as error:
        reason = f'{error}; install the package or choose another backend'
        raise DecodeError(_message(path, backend, reason)) from error
    except Exception as error:
        raise DecodeError(_message(path, backend, _reason(error))) from error
    return VideoReader(path, backend, source)


def _open_decord(path: str) -> _Source:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    # Packets that an edit list hides have negative times (clips cut without re-encoding, frequent in Kinetics). decord
    # counts them in its length, repeats the last frame for the excess and says nothing, so PyAV, which honours
    # the list, reads such a file.
    if reader.get_frame_timestamp(0)[0] < 0:
        return _open_pyav(path)

    def read(indices: list[int]) -> Tensor:
        try:
            return torch.from_numpy(reader.get_batch(indices).asnumpy())
        except decord.DECORDError as error:
            # decord2 3.4 takes the padded lines of frames 16, 24, 32, 48, 96 or 144 wide for a fourth channel.
            if 'size must exactly match' not in str(error):
                raise
            return _open_pyav(path).read(indices)

    return _Source(len(reader), float(reader.get_avg_fps()), read)


def _open_pyav(path: str) -> _Source:
    import av

    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError('no video stream')
        stream = container.streams.video[0]
        fps = float(stream.average_rate) if stream.average_rate else None
        num_frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)

    def read(indices: list[int]) -> Tensor:
        wanted, last = set(indices), max(indices)
        frames = {}
        with av.open(path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frames[number] = frame.to_ndarray(format='rgb24')
                if number == last:
                    break
        if last not in frames:
            raise ValueError(f'frame {last} of {num_frames} is missing, the file may be truncated')
        return torch.from_numpy(np.stack([frames[i] for i in indices]))

    return _Source(num_frames, fps, read)


def _open_frames(path: str, template: str = '{:05d}.jpg', start: int = 1) -> _Source:
    from torchvision.io import ImageReadMode, decode_image

    is_frame = _template_pattern(template)
    names = {name for name in os.listdir(path) if is_frame.fullmatch(name)}
    for number in range(start, start + len(names)):
        if template.format(number) not in names:
            raise ValueError(f'{template.format(number)!r} is missing ({len(names)} files look like {template!r})')

    def read(indices: list[int]) -> Tensor:
        images = {}
        for index in set(indices):
            name = template.format(start + index)
            try:
                images[index] = decode_image(os.path.join(path, name), mode=ImageReadMode.RGB).permute(1, 2, 0)
            except RuntimeError as error:
                raise ValueError(f'{name}: {_reason(error)}') from error
        sizes = {tuple(image.shape[:2]) for image in images.values()}
        if len(sizes) > 1:
            raise ValueError(f'frames of different sizes (height, width): {sorted(sizes)}')
        return torch.stack([images[i] for i in indices]).contiguous()

    return _Source(len(names), None, read)


def _template_pattern(template: str) -> re.Pattern[str]:
    parts = re.fullmatch(r'([^{}]*){[^{}]*}([^{}]*)', template)
    if parts is None:
        raise ValueError(f"template={template!r}: exactly one number field such as '{{:05d}}' is needed")
    prefix, suffix = parts.groups()
    return re.compile(f'{re.escape(prefix)}[0-9]+{re.escape(suffix)}')


def _message(path: str, backend: str, reason: str) -> str:
    return f'cannot decode {path!r} with {backend}: {reason}'


def _reason(error: Exception) -> str:
    """First line of an error, without the time stamps and source lines that decord puts before it."""
    text = re.sub(r'\[[0-9:]+\] \S+:[0-9]+: ', '', str(error)).strip()
    return (text or type(error).__name__).splitlines()[0]


BACKENDS: dict[str, Callable[..., _Source]] = {'decord': _open_decord, 'pyav': _open_pyav, 'frames': _open_frames}
