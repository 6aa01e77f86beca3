"""Decoding only what the wanted frames need gives the same frames as decoding everything, bit for bit."""

from pathlib import Path

import av
import numpy as np
import pytest

from wsbcn_mm.video.decoding.child import readers

NUM_FRAMES = 70


def moving_clip(path: Path, codec: str, options: dict[str, str]) -> Path:
    """Noise that drifts over a texture: frames refer to each other in every way that the encoder supports."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuv420p'
        for number in range(NUM_FRAMES):
            picture = np.roll(texture, (number // 2, number), (0, 1))[:64, :96].copy()
            picture[10:30, number : number + 20] = rng.integers(0, 256, (20, min(20, 96 - number), 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ('name', 'codec', 'kinds', 'options'),
    [
        ('pyramid.mp4', 'libx264', {'I', 'P', 'B'}, dict(g='250', bf='3', refs='4', **{'b-pyramid': 'normal'})),
        ('short.mp4', 'libx264', {'I', 'P', 'B'}, dict(g='12', bf='2', **{'b-pyramid': 'none'})),
        ('no_b.mkv', 'libx264', {'I', 'P'}, dict(g='20', bf='0')),
        ('vp9.webm', 'libvpx-vp9', {'I', 'P'}, dict(g='20', **{'cpu-used': '8', 'deadline': 'realtime'})),
    ],
)
def test_equals_decoding_from_the_start(
    tmp_path: Path, name: str, codec: str, kinds: set[str], options: dict[str, str]
) -> None:
    path = str(moving_clip(tmp_path / name, codec, options))
    with av.open(path) as container:
        assert {av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)} == kinds
    whole = dict(readers._read_from_start(path, set(range(NUM_FRAMES))))
    assert len(whole) == NUM_FRAMES
    rng = np.random.default_rng(0)
    choices = [set(range(start, start + 21, 2)) for start in (0, 17, 49)]
    choices += [{NUM_FRAMES - 1}, {0}, *(set(rng.integers(0, NUM_FRAMES, 8).tolist()) for _ in range(6))]
    with av.open(path) as container:
        packets = readers._list_packets(path, container)
        assert packets.are_frames
        for wanted in choices:
            found = dict(readers._read_needed(container, packets, wanted))
            assert set(found) == wanted
            for number in wanted:
                np.testing.assert_array_equal(found[number], whole[number])
