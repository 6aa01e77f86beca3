"""Real video files, frame folders and annotation files for the tests of the video data."""

from pathlib import Path

import av
import numpy as np
import torch
from torchvision.io import write_jpeg

BITS = 9


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with ``number`` as black and white vertical bars, readable after any compression."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    columns = np.array(bits)[np.arange(width) * BITS // width]
    return np.broadcast_to(np.where(columns, 235, 20).astype(np.uint8)[None, :, None], (height, width, 3)).copy()


def read_number(frame: torch.Tensor) -> int:
    """The number in an (H, W, 3) frame."""
    width = frame.shape[1]
    centres = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    return sum(1 << bit for bit, x in enumerate(centres) if frame[:, x].float().mean() > 128)


def read_numbers(frames: torch.Tensor) -> list[int]:
    return [read_number(frame) for frame in frames]


def write_clip(
    path: Path,
    num_frames: int = 20,
    height: int = 48,
    width: int = 72,
    codec: str = 'libx264',
    pix_fmt: str = 'yuv420p',
    rate: int = 12,
    gop: int = 250,
    faststart: bool = False,
) -> Path:
    """A video whose k-th frame shows k."""
    options = {'movflags': 'faststart'} if faststart else {}
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, height, width), format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut_without_encoding(source: Path, target: Path, hidden: int) -> Path:
    """Copy the packets of a clip with times ``hidden`` frames earlier: an edit list hides the first frames."""
    options = {'avoid_negative_ts': 'disabled', 'use_editlist': '1'}
    with av.open(str(source)) as old, av.open(str(target), 'w', options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        offset = round(hidden / (stream.time_base * stream.average_rate))
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts -= offset
                packet.dts -= offset
                packet.stream = copy
                new.mux(packet)
    return target


def write_frames(folder: Path, num_frames: int = 12, height: int = 48, width: int = 72, template='{:05d}.jpg') -> Path:
    """A folder of JPEGs, numbered from 1 as in Something-Something v1; the first shows 0."""
    folder.mkdir(parents=True)
    for number in range(num_frames):
        image = torch.from_numpy(numbered_frame(number, height, width)).permute(2, 0, 1).contiguous()
        write_jpeg(image, str(folder / template.format(number + 1)))
    return folder


def damaged_files(folder: Path) -> dict[str, Path]:
    """Files that pretend to be videos."""
    whole = write_clip(folder / 'whole.mp4', num_frames=120, gop=10, faststart=True).read_bytes()
    late_index = write_clip(folder / 'late.mp4', num_frames=120).read_bytes()
    damaged = {
        'truncated': whole[: len(whole) * 2 // 3],
        'no_moov': late_index[: late_index.rindex(b'moov') - 4],
        'empty': b'',
        'text': b'<html><body>404 Not Found</body></html>\n' * 50,
    }
    paths = {name: folder / f'{name}.mp4' for name in damaged}
    for name, content in damaged.items():
        paths[name].write_bytes(content)
    return paths
