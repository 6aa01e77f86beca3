"""Pictures of recognised videos: a strip of frames with scores, a timeline of windows, an annotated video."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image, ImageDraw

from ...engine.inference.drawing import BLACK, WHITE, Entry, bars, beside, font, heading, legend, stacked, text_size
from ...engine.inference.palette import distinct_colours
from .clips import Frames, all_in_order
from .results import ClipResult, WindowsResult

FRAMES, COLUMNS = 8, 6
"""Frames of a clip and windows in a row that are drawn at most."""

ROWS = 3
FRAME_WIDTH = 192
"""Width of a frame in a picture, pixels."""

SHOWN = 5
"""Classes with their scores."""

VIDEO_WIDTH = 1280
"""Greatest width of an annotated video, pixels."""


def strip(result: ClipResult) -> np.ndarray:
    """Return frames of the clip in a row, under a heading and above the best classes, (h, w, 3), uint8, RGB."""
    total = len(result.frames)
    chosen = np.linspace(0, total - 1, min(total, FRAMES)).round().astype(int)
    row = beside([fitted(frame, FRAME_WIDTH) for frame in result.frames[chosen]], 4)
    size = text_size(row.shape[1])
    facts = f'{len(chosen)} of the {total} frames that the model is fed'
    scores = [Entry(f'{one.name}  {one.score:.2f}', share=one.score) for one in result.top(SHOWN)]
    title = Path(result.source).name if result.source else 'array'
    return stacked([heading(title, facts, row.shape[1], size), row, bars(scores, row.shape[1], size)])


def timeline(result: WindowsResult) -> np.ndarray:
    """Return the classes over time, and the middle frames of windows with their classes, (h, w, 3), uint8, RGB."""
    windows = list(result.windows(1))
    labels = result.scores.argmax(axis=1)
    present = list(dict.fromkeys(labels[np.argsort(-np.bincount(labels)[labels], kind='stable')].tolist()))
    colours = dict(zip(present, map(lighter, distinct_colours((), len(present) + 1)[1:]), strict=True))
    number = min(len(windows), COLUMNS * ROWS)
    chosen = np.linspace(0, len(windows) - 1, number).round().astype(int)
    size = text_size(COLUMNS * FRAME_WIDTH)
    cells = []
    for index in chosen:
        window = windows[index]
        when = f'{clock(window.start)} - {clock(window.end)}'
        label = Entry(f'{window.classes[0].name} {window.classes[0].score:.2f}', colours[labels[index]], 1.0)
        cells.append(
            stacked(
                [
                    fitted(result.frames[index], FRAME_WIDTH),
                    bars([Entry(when, WHITE, 1.0), label], FRAME_WIDTH, size * 5 // 8 + 1),
                ]
            )
        )
    rows = [beside(cells[at : at + COLUMNS], 4) for at in range(0, number, COLUMNS)]
    width = rows[0].shape[1]
    seconds = result.total_frames / result.fps
    facts = f'{clock(seconds)}, {len(windows)} windows of {result.window_frames / result.fps:.2g} s'
    title = Path(result.source).name if result.source else 'array'
    entries = [Entry(result.class_names[label], colours[label]) for label in present]
    return stacked(
        [
            heading(title, facts, width, size),
            band(result, labels, colours, width, 2 * size),
            ticks(seconds, width, size * 3 // 4),
            legend(entries, width, size),
            *rows,
        ]
    )


def band(
    result: WindowsResult, labels: np.ndarray, colours: dict[int, tuple[int, int, int]], width: int, height: int
) -> np.ndarray:
    """Return a band of the video's length, each frame in the colour of the window whose middle is nearest."""
    frames = np.linspace(0, result.total_frames - 1, width)
    row = np.array([colours[labels[result.window_at(int(frame))]] for frame in frames], np.uint8)
    return np.broadcast_to(row, (height, width, 3)).copy()


def ticks(seconds: float, width: int, size: int) -> np.ndarray:
    """Return the times at the ends and quarters of a band, (h, width, 3)."""
    page = Image.new('RGB', (width, 2 * size), WHITE)
    draw = ImageDraw.Draw(page)
    for quarter, anchor in enumerate(('la', 'ma', 'ma', 'ma', 'ra')):
        at = min(round(width * quarter / 4), width - 1)
        draw.line((at, 0, at, size // 3), fill=BLACK)
        time = clock(seconds * quarter / 4)
        draw.text((at, size // 2), time, fill=BLACK, font=font(time, size), anchor=anchor)
    return np.asarray(page)


def lighter(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return a colour that black text can be read on."""
    red, green, blue = ((value + 255) // 2 for value in colour)
    return red, green, blue


def annotate(result: WindowsResult, frames: Frames, path: Path) -> None:
    """Write an mp4 of a video with the best classes of the nearest window on each frame.

    Args:
        result: Of this video.
        frames: The frames of the video.
        path: File to write, in place of one that is there.
    """
    windows = list(result.windows(3))
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=Fraction(result.fps).limit_denominator(1001))
        stream.pix_fmt = 'yuv420p'
        for number, frame in enumerate(all_in_order(frames)):
            picture = frame if frame.shape[1] <= VIDEO_WIDTH else fitted(frame, VIDEO_WIDTH)
            found = windows[result.window_at(number)].classes
            scores = [Entry(f'{one.name}  {one.score:.2f}', share=one.score) for one in found]
            picture = labelled(picture, scores, clock(number / result.fps))
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format='rgb24')):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def labelled(frame: np.ndarray, entries: list[Entry], time: str) -> np.ndarray:
    """Return a frame with bars and the time below it; all frames of a video get the same size."""
    width = max(frame.shape[1], 320)
    size = min(max(width // 40, 13), 22)
    below = bars([Entry(time, WHITE, 1.0), *entries], width, size)
    canvas = np.zeros((frame.shape[0], width, 3), np.uint8)
    left = (width - frame.shape[1]) // 2
    canvas[:, left : left + frame.shape[1]] = frame
    return even(stacked([canvas, below]))


def even(picture: np.ndarray) -> np.ndarray:
    """Return a picture of even sides, as video codecs need them: the last row or column may be repeated."""
    rows, columns = (side % 2 for side in picture.shape[:2])
    return np.pad(picture, ((0, rows), (0, columns), (0, 0)), mode='edge')


def fitted(picture: np.ndarray, width: int) -> np.ndarray:
    """Return a picture in a width."""
    height = max(round(picture.shape[0] * width / picture.shape[1]), 1)
    smaller = width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_NEAREST)


def clock(seconds: float) -> str:
    """Return '0:05.2', '12:00.0' or '1:02:03.4'."""
    minutes, rest = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    start = f'{hours}:{minutes:02d}' if hours else str(minutes)
    return f'{start}:{rest // 10:02d}.{rest % 10}'
