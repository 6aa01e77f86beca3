"""Real video files, frame folders and annotation files for the tests of the video data."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torchvision.io import write_jpeg

BITS = 9


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with `number` as black and white vertical bars, readable after any compression."""
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
    codec_options: dict[str, str] | None = None,
    make_frame=numbered_frame,
    durations=(1,),
) -> Path:
    """A video whose k-th frame shows k by default; frames last `durations` times 1 / rate seconds, in turn."""
    options = {'movflags': 'faststart'} if faststart else {}
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream(codec, rate=rate, options=codec_options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, rate)
        time = 0
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(make_frame(number, height, width), format='rgb24')
            frame.pts, frame.time_base = time, Fraction(1, rate)
            time += durations[number % len(durations)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def noisy_frame(number: int, height: int, width: int) -> np.ndarray:
    """A numbered frame whose lower half is coloured noise, so that the file has bytes to damage."""
    frame = numbered_frame(number, height, width)
    noise = np.random.default_rng(number).integers(0, 255, (height - height // 2, width, 3), dtype=np.uint8)
    frame[height // 2 :] = noise
    return frame


def write_sound(path: Path) -> Path:
    """A file with a sound track but no video."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def hide_the_end(source: Path, target: Path, shown: int, rate: int = 12) -> Path:
    """Shorten the edit list of an MP4 to its first `shown` frames; its header still claims all of them."""
    content = bytearray(source.read_bytes())
    edits, movie = content.index(b'elst'), content.index(b'mvhd')
    (timescale,) = struct.unpack_from('>I', content, movie + 16)
    struct.pack_into('>I', content, edits + 12, shown * timescale // rate)
    target.write_bytes(content)
    return target


def write_turned(path: Path, quarters: int, **options) -> Path:
    """A clip stored rotated by `quarters` times 90 degrees counter-clockwise, and marked to be rotated back."""

    def stored(number, height, width):
        shape = (width, height) if quarters % 2 else (height, width)
        return np.ascontiguousarray(np.rot90(numbered_frame(number, *shape), quarters))

    content = bytearray(write_clip(path, make_frame=stored, **options).read_bytes())
    # Track header: rows (a b u), (c d v), (x y w) of the matrix that rotates the picture clockwise.
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    matrix = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    struct.pack_into('>9i', content, content.index(b'tkhd') + 44, *matrix)
    path.write_bytes(content)
    return path


def flip_bits(source: Path, target: Path, number: int) -> Path:
    """Flip `number` bits in the second half of the video data."""
    content = bytearray(source.read_bytes())
    generator = np.random.default_rng(0)
    for place in generator.integers(len(content) // 2, len(content), number):
        content[place] ^= 1 << generator.integers(8)
    target.write_bytes(content)
    return target


def cut_without_encoding(source: Path, target: Path, hidden: int) -> Path:
    """Copy the packets of a clip with times `hidden` frames earlier: an edit list hides the first frames."""
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
    """A folder of JPEGs, numbered from 1 as in Something-Something v1; the first one shows 0."""
    folder.mkdir(parents=True)
    for number in range(num_frames):
        image = torch.from_numpy(numbered_frame(number, height, width)).permute(2, 0, 1).contiguous()
        write_jpeg(image, str(folder / template.format(number + 1)))
    return folder


def damaged_files(folder: Path) -> dict[str, Path]:
    """Damaged files, and files that are not videos."""
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
