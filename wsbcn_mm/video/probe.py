"""What a video file really holds, found by decoding its end: containers claim frames that are not there."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from .decoding import DecodeError, open_video


class VideoFacts(NamedTuple):
    """What was found in a file or folder.

    Attributes:
        frames: how many frames can be read, verified by decoding the end; 0 where ``status`` is not ``'ok'``.
        fps: frames per second; None where the source does not say.
        width: pixels.
        height: pixels.
        bytes: size of the file, or of all files in the folder.
        status: ``'ok'``, or in one line why the clip cannot be used.
    """

    frames: int
    fps: float | None
    width: int
    height: int
    bytes: int
    status: str


def probe(path: str, *, backend: str = 'decord', deadline: float = 20.0, **options: Any) -> VideoFacts:
    """Open a video, read its last frame, and say what was found; a bad file is a status, not an error.

    Args:
        path: video file, or folder of images for ``backend='frames'``.
        backend: see ``open_video``.
        deadline: seconds after which the file counts as unreadable.
        options: see ``open_video``.
    """
    size = _size(path)
    try:
        reader = open_video(path, backend, **options)
        height, width = reader.get_frames([len(reader) - 1]).shape[1:3]
    except DecodeError as error:
        return VideoFacts(0, None, 0, 0, size, str(error))
    return VideoFacts(len(reader), reader.fps, width, height, size, 'ok')


def probe_many(
    paths: Iterable[str], *, processes: int = 1, deadline: float = 20.0, backend: str = 'decord', **options: Any
) -> Iterator[tuple[str, VideoFacts]]:
    """Yield (path, facts) in the order of ``paths``, several files at a time.

    Args:
        paths: files or folders.
        processes: how many files are decoded at the same time.
        deadline: seconds for each file.
        backend: see ``open_video``.
        options: see ``open_video``.
    """
    paths = list(paths)
    with ThreadPoolExecutor(processes) as pool:
        facts = pool.map(lambda path: probe(path, backend=backend, deadline=deadline, **options), paths)
        yield from zip(paths, facts, strict=True)


def _size(path: str) -> int:
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return os.path.getsize(path) if os.path.exists(path) else 0
