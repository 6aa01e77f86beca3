"""What a video file really holds, found by decoding it to its end: containers claim frames that are not there."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

from ..decoding.child.readers import Verified, reason
from ..decoding.process import DecoderStartError, decoder_process
from ..decoding.reader import DecodeError, check_backend, check_deadline, open_video

OK = 'ok'


class VideoFacts(NamedTuple):
    """What was found in a file or folder.

    Attributes:
        frames: how many can be decoded, whatever the container claims; 0 for a clip that cannot be used.
        fps: frames per second; None where the source does not say.
        width: of a frame as it is shown, pixels.
        height: of a frame as it is shown, pixels.
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
    """Decode a video to its end and say what was found; a bad file is a status, not an error.

    A container that claims more frames than there are is usable, with the true number. A file whose decoding breaks off
    is not: what is before the break may be any part of the clip.

    Args:
        path: video file, or folder of images for ``backend='frames'``, of which the first and the last are decoded.
        backend: see ``open_video``.
        deadline: seconds after which decoding is stopped and the file counts as unusable.
        options: see ``open_video``.

    Raises:
        ValueError: for an unknown backend or option, or a deadline that is not positive.
        DecoderStartError: if the decoding process cannot be started.
    """
    size = _size(path)
    if backend == 'frames':
        return _probe_folder(path, size, deadline, options)
    check_backend(backend, options)
    check_deadline(deadline)
    try:
        process = decoder_process()
        found = Verified(*process.verify(path, deadline))
    except DecoderStartError:
        raise
    except Exception as error:
        return VideoFacts(0, None, 0, 0, size, reason(error))
    # Matroska has no index that would tell; its reader does, on the side.
    problem = found.error or next((line for line in process.complaints if 'File ended prematurely' in line), None)
    if problem:
        status = f'{found.decoded} of {found.claimed} frames can be decoded: {problem}'
        return VideoFacts(0, found.fps, found.width, found.height, size, status)
    return VideoFacts(found.decoded, found.fps, found.width, found.height, size, OK)


def probe_many(
    paths: Iterable[str], *, processes: int = 1, deadline: float = 20.0, backend: str = 'decord', **options: Any
) -> Iterator[tuple[str, VideoFacts]]:
    """Yield (path, facts) in the order of ``paths``, several files at a time, each in a process that can be killed.

    Args:
        paths: files or folders.
        processes: how many files are decoded at the same time.
        deadline: seconds for each file.
        backend: see ``open_video``.
        options: see ``open_video``.

    Raises:
        ValueError: for fewer than one process, or as ``probe``.
        DecoderStartError: as ``probe``.
    """
    if processes < 1:
        raise ValueError(f'processes={processes}: at least 1 is needed')
    waiting = iter(paths)
    with ThreadPoolExecutor(processes) as pool:

        def submit(path: str) -> tuple[str, 'Future[VideoFacts]']:
            return path, pool.submit(probe, path, backend=backend, deadline=deadline, **options)

        running = [submit(path) for path in islice(waiting, 2 * processes)]
        try:
            while running:
                path, facts = running.pop(0)
                yield path, facts.result()
                running.extend(submit(path) for path in islice(waiting, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _probe_folder(path: str, size: int, deadline: float, options: dict[str, Any]) -> VideoFacts:
    try:
        reader = open_video(path, 'frames', deadline=deadline, **options)
        height, width = reader.get_frames([0, len(reader) - 1]).shape[1:3]
    except DecodeError as error:
        return VideoFacts(0, None, 0, 0, size, str(error).split(' with frames: ', 1)[1])
    return VideoFacts(len(reader), reader.fps, width, height, size, OK)


def _size(path: str) -> int:
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
    return os.path.getsize(path) if os.path.exists(path) else 0
