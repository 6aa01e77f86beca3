import os
import pickle
import re

import numpy as np
import pytest
import torch

from tests.video.clip_files import cut_without_encoding, damaged_files, read_numbers, write_clip, write_frames
from wsbcn_mm.video.data.probe import probe
from wsbcn_mm.video.decoding.reader import DecodeError, open_video

VIDEO_BACKENDS = ('decord', 'pyav')


def read_last_frame(path, backend):
    reader = open_video(path, backend)
    return reader.get_frames([len(reader) - 1])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('decoding')


@pytest.fixture(scope='module')
def damaged(tmp_path_factory):
    return damaged_files(tmp_path_factory.mktemp('damaged'))


@pytest.mark.parametrize('backend', VIDEO_BACKENDS)
@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('h264.mp4', {'num_frames': 40}),
        ('short_gop.mp4', {'num_frames': 40, 'gop': 5}),
        ('odd_size.mp4', {'height': 47, 'width': 73, 'pix_fmt': 'yuv444p'}),
        ('one_frame.mp4', {'num_frames': 1}),
        ('vp9.webm', {'codec': 'libvpx-vp9', 'num_frames': 15}),
    ],
)
def test_frame_k_shows_k(folder, name, options, backend):
    path = folder / f'{backend}_{name}'
    write_clip(path, **options)
    reader = open_video(path, backend)
    total = options.get('num_frames', 20)
    assert len(reader) == total
    assert reader.fps == pytest.approx(12)
    generator = np.random.default_rng(0)
    for indices in (range(total), generator.integers(0, total, 16), [total - 1, 0, 0]):
        frames = reader.get_frames(indices)
        assert read_numbers(frames) == list(indices)
    assert frames.shape == (3, options.get('height', 48), options.get('width', 72), 3)
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous()


@pytest.mark.parametrize('backend', VIDEO_BACKENDS)
@pytest.mark.parametrize('width', [16, 24, 32, 48, 96, 144])
def test_widths_whose_padded_lines_decord_misreads(folder, width, backend):
    path = write_clip(folder / f'{width}_{backend}.mp4', num_frames=6, width=width)
    frames = open_video(path, backend).get_frames([5, 2])
    assert frames.shape == (2, 48, width, 3)
    if width >= 32:
        assert read_numbers(frames) == [5, 2]


def test_backends_agree_up_to_colour_conversion(folder):
    path = write_clip(folder / 'agree.mp4', num_frames=12)
    frames = [open_video(path, backend).get_frames(range(12)).int() for backend in VIDEO_BACKENDS]
    assert (frames[0] - frames[1]).abs().max() <= 4


@pytest.mark.parametrize('backend', VIDEO_BACKENDS)
@pytest.mark.parametrize('gop', [6, 250])
def test_frames_hidden_by_an_edit_list_do_not_count(folder, backend, gop):
    path = write_clip(folder / f'whole_{backend}_{gop}.mp4', num_frames=30, gop=gop)
    cut = cut_without_encoding(path, folder / f'cut_{backend}_{gop}.mp4', hidden=8)
    reader = open_video(cut, backend)
    assert len(reader) == 22
    assert read_numbers(reader.get_frames([0, 1, 5, 13, 21])) == [8, 9, 13, 21, 29]


@pytest.mark.parametrize('backend', VIDEO_BACKENDS)
@pytest.mark.parametrize('kind', ['truncated', 'no_moov', 'empty', 'text', 'missing'])
def test_damaged_files_raise_decode_error_with_file_and_backend(damaged, backend, kind):
    path = str(damaged['empty'].parent / 'missing.mp4' if kind == 'missing' else damaged[kind])
    with pytest.raises(DecodeError, match=f'^{re.escape(f"cannot decode {path!r} with {backend}: ")}.+$'):
        read_last_frame(path, backend)


def test_texts_of_missing_and_empty_files(damaged):
    path = str(damaged['empty'])
    with pytest.raises(DecodeError) as caught:
        open_video(path)
    assert str(caught.value) == f'cannot decode {path!r} with decord: the file is empty'
    with pytest.raises(DecodeError) as caught:
        open_video('nowhere.mp4', 'pyav')
    assert str(caught.value) == "cannot decode 'nowhere.mp4' with pyav: no such file or folder"


def test_decode_error_survives_pickling_from_a_worker():
    error = DecodeError("cannot decode 'a.mp4' with decord: reason")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert type(error)(str(error)).args == error.args


def test_sound_without_pictures_is_a_decode_error(folder):
    import av

    path = str(folder / 'sound.mp4')
    with av.open(path, 'w') as container:
        stream = container.add_stream('aac', rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    for backend in VIDEO_BACKENDS:
        with pytest.raises(DecodeError):
            open_video(path, backend)


def test_indices_outside_the_video_are_refused(folder):
    reader = open_video(write_clip(folder / 'indices.mp4', num_frames=5))
    with pytest.raises(ValueError, match=r'indices=\[0, 5\]: frames 0 to 4 of .* are expected$'):
        reader.get_frames([0, 5])
    with pytest.raises(ValueError, match='at least one frame'):
        reader.get_frames([])
    with pytest.raises(ValueError, match=r'indices=\[-1\]'):
        reader.get_frames(torch.tensor([-1]))


def test_unknown_backend_and_options():
    with pytest.raises(ValueError, match=r"^backend='opencv': one of decord, frames, pyav is expected$"):
        open_video('a.mp4', 'opencv')
    with pytest.raises(ValueError, match=r"^backend='decord' does not accept the options template$"):
        open_video('a.mp4', template='{}.jpg')
    with pytest.raises(ValueError, match=r"^template='frame\.jpg': exactly one number field such as '{:05d}'"):
        open_video('folder', 'frames', template='frame.jpg')


@pytest.mark.parametrize('template', ['{:05d}.jpg', 'img_{:05d}.jpg'])
def test_frame_folder(tmp_path, template):
    folder = write_frames(tmp_path / '17', 12, template=template)
    (folder / 'Thumbs.db').write_bytes(b'')
    reader = open_video(folder, 'frames', template=template)
    assert len(reader) == 12
    assert reader.fps is None
    frames = reader.get_frames([11, 3, 3, 0])
    assert read_numbers(frames) == [11, 3, 3, 0]
    assert frames.shape == (4, 48, 72, 3)
    assert frames.is_contiguous()


def test_frame_folder_with_a_gap_or_a_broken_frame(tmp_path):
    folder = write_frames(tmp_path / 'gap', 6)
    os.remove(folder / '00003.jpg')
    with pytest.raises(DecodeError) as caught:
        open_video(folder, 'frames')
    reason = "'00003.jpg' is missing (5 files match '{:05d}.jpg')"
    assert str(caught.value) == f'cannot decode {str(folder)!r} with frames: {reason}'

    (folder / '00003.jpg').write_bytes(b'not a picture')
    reader = open_video(folder, 'frames')
    assert len(reader) == 6
    with pytest.raises(DecodeError, match=r'with frames: 00003\.jpg: '):
        reader.get_frames([0, 2])

    (tmp_path / 'nothing').mkdir()
    with pytest.raises(DecodeError, match='with frames: no frames'):
        open_video(tmp_path / 'nothing', 'frames')


def test_an_empty_frame_and_one_that_is_never_read_are_errors(tmp_path, monkeypatch):
    folder = write_frames(tmp_path / 'frames', 6)
    (folder / '00003.jpg').write_bytes(b'')
    reader = open_video(folder, 'frames', deadline=20)
    with pytest.raises(DecodeError) as caught:
        reader.get_frames([0, 2])
    assert str(caught.value) == f'cannot decode {str(folder)!r} with frames: 00003.jpg: Expected a non empty file'

    os.mkfifo(tmp_path / 'pipe')  # opening it waits forever for a writer, like a drive that does not answer
    monkeypatch.setattr('torchvision.io.decode_image', lambda path, mode: (tmp_path / 'pipe').read_bytes())
    reader = open_video(folder, 'frames', deadline=0.5)
    with pytest.raises(DecodeError) as caught:
        reader.get_frames([0, 2])
    assert str(caught.value) == f'cannot decode {str(folder)!r} with frames: not decoded within 0.5 s'
    monkeypatch.undo()
    assert read_numbers(open_video(folder, 'frames', deadline=20).get_frames([3, 1])) == [3, 1]
    assert probe(str(folder), backend='frames', deadline=20).status == 'ok'
