"""PyAV's own conversion, where it is used, equals that of decord's filters."""

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from wsbcn_mm.video.decoding.child import readers


def frames_of(path: Path, height: int, width: int, pix_fmt: str, **tags: Any) -> list[av.VideoFrame]:
    """Decoded frames of a new coloured clip."""
    rng = np.random.default_rng(0)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for _ in range(3):
            picture = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (width, height))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize(
    ('height', 'width', 'pix_fmt', 'tags'),
    [
        (256, 340, 'yuv420p', {}),
        (64, 48, 'yuv420p', {}),
        (47, 73, 'yuv444p', {}),
        (60, 80, 'yuv422p', {}),
        (60, 80, 'yuvj420p', {}),
        (60, 80, 'yuv420p', dict(colorspace=1)),
        (60, 80, 'yuv420p', dict(colorspace=9)),
        (60, 80, 'yuv420p10le', {}),
    ],
)
def test_conversions_are_equal(tmp_path: Path, height: int, width: int, pix_fmt: str, tags: dict[str, int]) -> None:
    frames = frames_of(tmp_path / 'colours.mp4', height, width, pix_fmt, **tags)
    chosen, filters = readers._rgb_converter(frames[0]), readers._filter_converter(frames[0], 0)
    for frame in frames:
        rgb = chosen(frame)
        assert rgb.shape == (height, width, 3)
        np.testing.assert_array_equal(rgb, filters(frame))
