"""Find the true contents of a video file by decoding it completely: containers may claim frames that do not exist."""

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
    """Contents of a file or folder.

    Attributes:
        frames: Number of decodable frames, whatever the container claims; 0 for a clip that cannot be used.
        fps: Frames per second; None if unknown.
        width: Width of a displayed frame in pixels.
        height: Height of a displayed frame in pixels.
        bytes: Size of the file, or of all files in the folder.
        status: 'ok', or in one line why the clip cannot be used.
    """

    frames: int
    fps: float | None
    width: int
    height: int
    bytes: int
    status: str


def probe(path: str, *, backend: str = 'decord', deadline: float = 20.0, **options: Any) -> VideoFacts:
    """Decode a video completely and return its contents; a bad file results in a status, not an error.

    A container that claims too many frames is usable, with the true number. A file whose decoding breaks off is not
    usable, because the frames before the break may be any part of the clip.

    Args:
        path: Video file, or folder of images for `backend='frames'`, of which the first and the last are decoded.
        backend: See `open_video`.
        deadline: Seconds after which decoding is stopped and the file counts as unusable.
        options: See `open_video`.

    Raises:
        ValueError: For an unknown backend or option, or a deadline that is not positive.
        DecoderStartError: If the decoding process cannot be started.
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
    # Matroska has no index that reveals a cut; its reader only logs it.
    problem = found.error or next((line for line in process.complaints if 'File ended prematurely' in line), None)
    if problem:
        status = f'{found.decoded} of {found.claimed} frames can be decoded: {problem}'
        return VideoFacts(0, found.fps, found.width, found.height, size, status)
    return VideoFacts(found.decoded, found.fps, found.width, found.height, size, OK)


def probe_many(
    paths: Iterable[str], *, processes: int = 1, deadline: float = 20.0, backend: str = 'decord', **options: Any
) -> Iterator[tuple[str, VideoFacts]]:
    """Yield (path, facts) in the order of `paths`, several files at a time, each in a process that can be killed.

    Args:
        paths: Files or folders.
        processes: Number of files decoded at the same time.
        deadline: Seconds per file.
        backend: See `open_video`.
        options: See `open_video`.

    Raises:
        ValueError: For fewer than one process, or as in `probe`.
        DecoderStartError: As in `probe`.
    """
    if processes < 1:
        raise ValueError(f'processes={processes}: at least 1 is expected')
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
