"""Read frames by number from a video file with decord or PyAV; both return the same frames and pixels.

Frame k is the k-th frame that a player would show. decord counts packets instead, and silently returns wrong frames:
frames hidden by an edit list count, files cut at either end give other frames than requested, seeking in open GOPs
arrives one frame late, and undecodable frames are replaced by a neighbour. So the packets are listed first, without
decoding. If they are not one frame each in display order, PyAV reads the file from its start.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

import numpy as np

ROTATIONS: dict[int, tuple[str, ...]] = {0: (), 90: ('cclock',), 180: ('clock', 'clock'), 270: ('clock',)}
"""Filters that rotate a frame counter-clockwise, by degrees."""


NewArray = Callable[[tuple[int, ...]], np.ndarray]
"""Allocates a uint8 array of a shape."""


class Source(NamedTuple):
    """An open video.

    Attributes:
        num_frames: Number of displayed frames, according to the container.
        fps: Frames per second; None if unknown.
        read: Function from frame numbers, at least one and all in range, to (T, H, W, 3) uint8 RGB in a new array.
        close: Function to call at the end.
    """

    num_frames: int
    fps: float | None
    read: Callable[[list[int], NewArray], np.ndarray]
    close: Callable[[], None]


class Verified(NamedTuple):
    """Result of decoding a whole file.

    Attributes:
        claimed: Number of displayed frames, according to the container.
        decoded: Number of decoded frames.
        error: Error that stopped the decoding early; None if it reached the end.
        fps: Frames per second; None if unknown.
        width: Width of a displayed frame in pixels.
        height: Height of a displayed frame in pixels.
    """

    claimed: int
    decoded: int
    error: str | None
    fps: float | None
    width: int
    height: int


class _Packets(NamedTuple):
    num_shown: int
    fps: float | None
    are_frames: bool
    times: list[int]  # times of the frames, in order, if packets are frames
    keys: dict[int, int]  # time of each key frame -> time to seek, not later


def open_decord(path: str) -> Source:
    """Open with decord, or with PyAV if decord's frame k would be a different one."""
    import decord

    with _opened(path) as container:
        packets = _list_packets(path, container)
    if not packets.are_frames:
        return open_pyav(path)
    # Above this share of undecodable frames decord raises instead of repeating a neighbour.
    reader = decord.VideoReader(path, num_threads=1, fault_tol=1e-9)
    if len(reader) != packets.num_shown:
        return open_pyav(path)

    def read(indices: list[int], new_array: NewArray) -> np.ndarray:
        try:
            frames = reader.get_batch(indices).asnumpy()
        except decord.DECORDLimitReachedError:
            print(f'decord replaced frames of {path}: read with PyAV', file=sys.stderr)
        except decord.DECORDError as error:
            # decord2 3.4 mistakes the padded lines of frames 16, 24, 32, 48, 96 or 144 wide for a fourth channel.
            if 'size must exactly match' not in str(error):
                raise
        else:
            array = new_array(frames.shape)
            array[:] = frames
            return array
        with closing(open_pyav(path)) as source:
            return source.read(indices, new_array)

    return Source(packets.num_shown, packets.fps, read, lambda: None)


def open_pyav(path: str) -> Source:
    """Open with PyAV, which decodes only what the wanted frames need, or from the start if packets are not frames."""
    with ExitStack() as opened:
        container = opened.enter_context(_opened(path))
        packets = _list_packets(path, container)
        container.streams.video[0].codec_context.thread_count = 1

        def read(indices: list[int], new_array: NewArray) -> np.ndarray:
            wanted, array = set(indices), None
            if packets.are_frames:
                array = _collect(_read_needed(container, packets, wanted), indices, new_array)
            if array is None:
                array = _collect(_read_from_start(path, wanted), indices, new_array)
            if array is None:
                last = max(wanted)
                raise ValueError(f'frame {last} of {packets.num_shown} is missing, the file may be truncated')
            return array

        return Source(packets.num_shown, packets.fps, read, opened.pop_all().close)


def _collect(frames: Iterator[tuple[int, np.ndarray]], indices: list[int], new_array: NewArray) -> np.ndarray | None:
    """Put numbered frames at the places of their numbers in `indices`; return None if one is missing."""
    places: dict[int, list[int]] = {}
    for place, index in enumerate(indices):
        places.setdefault(index, []).append(place)
    array = None
    for number, frame in frames:
        if array is None:
            array = new_array((len(indices), *frame.shape))
        elif frame.shape != array.shape[1:]:
            sizes = sorted({frame.shape[:2], array.shape[1:3]})
            raise ValueError(f'frames of different sizes (height, width): {sizes}')
        for place in places.pop(number, ()):
            array[place] = frame
        if not places:
            return array
    return None


def _read_needed(container: Any, packets: _Packets, wanted: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield numbered frames, decoding from the key frame before the first one.

    For H.264, frames in between that no other frame refers to are not decoded; with B frames, these are half of them.
    One thread is used, so that a packet is decoded before the setting for the next one changes.

    Raises:
        ValueError: If wanted frames are missing in an H.264 file, which has one frame per packet.
    """
    import av

    number_at = {packets.times[number]: number for number in wanted}
    start = max((time for time in packets.keys if time <= min(number_at)), default=None)
    if start is None:
        return
    stream = container.streams.video[0]
    try:
        container.seek(packets.keys[start], stream=stream)
    except av.FFmpegError:
        return
    decoder = stream.codec_context
    is_h264 = decoder.name == 'h264'
    begun, to_rgb = False, None
    for packet in container.demux(stream):
        begun = begun or packet.pts == start
        if not begun:
            continue
        if is_h264:
            decoder.skip_frame = 'DEFAULT' if packet.pts in number_at else 'NONREF'
        for frame in decoder.decode(packet):
            _tell_damage(frame)
            if frame.pts in number_at:
                to_rgb = to_rgb or _rgb_converter(frame)
                yield number_at.pop(frame.pts), to_rgb(frame)
    if number_at and begun and is_h264:
        # The decoder skipped it, and counting from the start would return the next frame instead.
        raise ValueError(f'frame {min(number_at.values())} of {len(packets.times)} is lost, the file is damaged')


def _read_from_start(path: str, wanted: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield numbered frames by counting the displayed frames."""
    with _decoding(path) as shown:
        to_rgb = None
        for number, frame in enumerate(shown):
            _tell_damage(frame)
            if number in wanted:
                to_rgb = to_rgb or _rgb_converter(frame)
                yield number, to_rgb(frame)


def _tell_damage(frame: Any) -> None:
    """Report a frame that the decoder marked as damaged; that of MPEG-4 part 2 writes nothing about most of them."""
    if frame.is_corrupt:
        print(f'the frame at {frame.time} s is damaged', file=sys.stderr)


def verify(path: str) -> Verified:
    """Decode a file completely.

    Raises:
        Exception: The exception of PyAV, if the first frame cannot be decoded.
    """
    with _opened(path) as container:
        packets = _list_packets(path, container)
    decoded, error, height, width = 0, None, 0, 0
    with _decoding(path) as shown:
        try:
            for frame in shown:
                if not decoded:
                    height, width, _ = _rgb_converter(frame)(frame).shape
                decoded += 1
        except Exception as problem:
            if not decoded:
                raise
            error = reason(problem)
    return Verified(packets.num_shown, decoded, error, packets.fps, width, height)


def reason(error: Exception) -> str:
    """Return the first line of an error, without the libraries' time stamps, source lines and error numbers."""
    if isinstance(error, FileNotFoundError):
        return 'no such file or folder'
    if isinstance(error, ImportError):
        return f'{error}; install the package or choose another backend'
    text = re.sub(r'\[[0-9:]+\] \S+:[0-9]+: |\[Errno [0-9]+\] |\w+, \S+\.cpp:[0-9]+, ', '', str(error)).strip()
    return (text or type(error).__name__).splitlines()[0]


def _opened(path: str) -> Any:
    import av

    if os.path.getsize(path) == 0:
        raise ValueError('the file is empty')
    return av.open(path)


def _list_packets(path: str, container: Any) -> _Packets:
    num_shown, are_frames, times, keys = 0, True, set[int](), dict[int, int]()
    if not container.streams.video:
        raise ValueError('no video stream')
    stream = container.streams.video[0]
    _check_not_cut_off(path, stream)
    fps = float(stream.average_rate) if stream.average_rate else None
    last_key = None
    for packet in container.demux(stream):
        if not packet.size:
            continue
        time = packet.pts
        if packet.is_keyframe and time is not None:
            keys[time] = time if packet.dts is None else min(time, packet.dts)
            last_key = time
        hidden = packet.is_discard
        num_shown += not hidden
        # Displayed before the key frame that it follows in the file: the sign of an open GOP.
        leading = time is not None and last_key is not None and time < last_key
        are_frames &= not (hidden or leading or last_key is None or time is None or time in times)
        times.add(time)
    return _Packets(num_shown, fps, are_frames, sorted(times) if are_frames else [], keys)


def _check_not_cut_off(path: str, stream: Any) -> None:
    """Raise ValueError if the container's index points beyond the end of the file.

    MP4 has an index, and PyAV exposes it since 17.0. A cut between two packets has no other sign than an early end.
    """
    entries: Any = getattr(stream, 'index_entries', ())
    if len(entries):
        end, size = entries[-1].pos + entries[-1].size, os.path.getsize(path)
        if end > size:
            raise ValueError(f'the file is cut off: {size} bytes, its last frame would end at {end}')


@contextmanager
def _decoding(path: str) -> Iterator[Iterator[Any]]:
    with _opened(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        yield container.decode(video=0)


def _rgb_converter(first: Any) -> Callable[[Any], np.ndarray]:
    """Return a function from a frame to (H, W, 3) RGB, with the result of the filters that decord uses.

    PyAV's own conversion is faster, but does not rotate. Its result is the same for 8 bits and different for 10.
    """
    degrees = first.rotation % 360
    if degrees not in ROTATIONS:
        raise ValueError(f'rotation by {degrees} degrees: one of {", ".join(map(str, sorted(ROTATIONS)))} is expected')
    if not degrees and all(component.bits == 8 for component in first.format.components):
        return _plain_converter()
    return _filter_converter(first, degrees)


def _plain_converter() -> Callable[[Any], np.ndarray]:
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()  # reuses its tables for all frames

    def convert(frame: Any) -> np.ndarray:
        rgb: np.ndarray = reformatter.reformat(frame, format='rgb24', threads=1).to_ndarray()
        return rgb

    return convert


def _filter_converter(first: Any, degrees: int) -> Callable[[Any], np.ndarray]:
    from av.filter import Graph

    turned = degrees in (90, 270)
    height, width = (first.width, first.height) if turned else (first.height, first.width)
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(width=first.width, height=first.height, format=first.format.name, time_base=first.time_base),
        *(graph.add('transpose', direction) for direction in ROTATIONS[degrees]),
        graph.add('scale', f'{width}:{height}'),
        graph.add('format', 'rgb24'),
        graph.add('buffersink'),
    ).configure()

    def convert(frame: Any) -> np.ndarray:
        graph.push(frame)
        rgb: np.ndarray = graph.pull().to_ndarray()
        return rgb

    return convert


READERS: dict[str, Callable[[str], Source]] = {'decord': open_decord, 'pyav': open_pyav}
