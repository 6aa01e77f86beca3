"""Files as found in the wild: each gives its displayed frames, or an error with the reason."""

import re

import av
import numpy as np
import pytest
import torch

from tests.video.clip_files import (
    damaged_files,
    flip_bits,
    hide_the_end,
    noisy_frame,
    read_numbers,
    write_clip,
    write_sound,
    write_turned,
)
from wsbcn_mm.video.data.probe import VideoFacts, probe
from wsbcn_mm.video.decoding.reader import DecodeError, open_video

DEADLINE = 20.0
BACKENDS = ('decord', 'pyav')


def open_gop(path):
    options = {'x264-params': 'open-gop=1:keyint=8:bframes=3:b-adapt=0:scenecut=0'}
    return write_clip(path, 60, height=96, width=128, codec_options=options, make_frame=noisy_frame)


def hevc(path):
    options = {'x265-params': 'keyint=8:log-level=none'}
    return write_clip(path, 30, codec='libx265', pix_fmt='yuv420p10le', codec_options=options)


def odd_size(path):
    return write_clip(path, 5, height=47, width=73, pix_fmt='yuv444p', make_frame=noisy_frame)


def more_claimed(path, shown=80):
    whole = write_clip(path.with_name('whole.mp4'), 120, gop=30, make_frame=noisy_frame)
    return hide_the_end(whole, path, shown)


SOUND = {
    'gop_12_with_b_frames.mp4': (40, lambda path: write_clip(path, 40, gop=12, codec_options={'bf': '3'})),
    'open_gop.mp4': (60, open_gop),
    'hevc_10_bits.mp4': (30, hevc),
    'more_claimed_than_shown.mp4': (80, more_claimed),
    'variable_rate.mp4': (30, lambda path: write_clip(path, 30, rate=60, durations=(1, 1, 7))),
    '10_bits.mp4': (9, lambda path: write_clip(path, 9, pix_fmt='yuv420p10le', make_frame=noisy_frame)),
    'odd_size.mp4': (5, odd_size),
    'full_range.mp4': (5, lambda path: write_clip(path, 5, pix_fmt='yuvj420p', make_frame=noisy_frame)),
    'one_frame.mp4': (1, lambda path: write_clip(path, 1)),
    'turned_90.mp4': (6, lambda path: write_turned(path, 1, num_frames=6, height=72, width=54)),
    'turned_180.mp4': (6, lambda path: write_turned(path, 2, num_frames=6, height=54, width=72)),
    'turned_270.mp4': (6, lambda path: write_turned(path, 3, num_frames=6, height=72, width=54)),
    'vp9.webm': (15, lambda path: write_clip(path, 15, codec='libvpx-vp9', make_frame=noisy_frame)),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('crafted')


@pytest.fixture(scope='module')
def broken(folder):
    paths = damaged_files(folder)
    webm = write_clip(folder / 'whole.webm', 40, codec='libvpx-vp9', make_frame=noisy_frame).read_bytes()
    paths['cut_webm'] = folder / 'cut.webm'
    paths['cut_webm'].write_bytes(webm[: len(webm) * 2 // 3])
    paths['sound'] = write_sound(folder / 'sound.mp4')
    paths['deleted'] = folder / 'deleted.mp4'
    return {kind: str(path) for kind, path in paths.items()}


@pytest.mark.parametrize('name', SOUND)
def test_every_backend_gives_the_same_frames_with_and_without_a_deadline(folder, name):
    number, make = SOUND[name]
    path = make(folder / name)
    indices = [*np.random.default_rng(0).permutation(number).tolist(), number - 1, 0]
    shown = [open_video(path, backend, deadline=DEADLINE) for backend in BACKENDS]
    assert [len(reader) for reader in shown] == [number, number]
    frames = [reader.get_frames(indices) for reader in shown]
    assert read_numbers(frames[0][:, : frames[0].shape[1] // 2]) == indices
    assert torch.equal(*frames)
    assert torch.equal(frames[0], open_video(path).get_frames(indices))
    assert [reader.complaints for reader in shown] == [[], []]
    height, width = frames[0].shape[1:3]
    assert probe(str(path), deadline=DEADLINE) == VideoFacts(
        number, shown[0].fps, width, height, path.stat().st_size, 'ok'
    )
    if name.startswith('turned'):
        assert (height, width) == (54, 72)


@pytest.mark.parametrize(('name', 'make'), [('decord_gop.mp4', open_gop), ('decord_claimed.mp4', more_claimed)])
def test_decord_by_itself_gives_wrong_frames_of_these_files(folder, name, make):
    """If this fails, decord is fixed, and files need not be checked before it reads them."""
    import decord

    reader = decord.VideoReader(str(make(folder / name)), num_threads=1)
    indices = np.random.default_rng(0).permutation(len(reader)).tolist()
    frames = torch.from_numpy(reader.get_batch(indices).asnumpy())
    assert read_numbers(frames[:, : frames.shape[1] // 2]) != indices


REASONS = {
    'truncated': r'the file is cut off: \d+ bytes, its last frame would end at \d+',
    'no_moov': "Invalid data found when processing input: '.*no_moov.mp4'",
    'empty': 'the file is empty',
    'text': "Invalid data found when processing input: '.*text.mp4'",
    'sound': 'no video stream',
    'deleted': 'no such file or folder',
}


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('kind', REASONS)
def test_files_that_are_not_videos_are_errors_with_the_reason(broken, kind, backend):
    path = broken[kind]
    for deadline in (DEADLINE, None):
        with pytest.raises(DecodeError) as caught:
            open_video(path, backend, deadline=deadline)
        expected = f'cannot decode {re.escape(repr(path))} with {backend}: {REASONS[kind]}'
        assert re.fullmatch(expected, str(caught.value))
    facts = probe(path, backend=backend, deadline=DEADLINE)
    assert re.fullmatch(REASONS[kind], facts.status)
    assert facts.frames == 0


def test_a_cut_off_webm_has_the_frames_before_the_cut_and_is_unusable_for_the_manifest(broken):
    path = broken['cut_webm']
    for backend in BACKENDS:
        reader = open_video(path, backend, deadline=DEADLINE)
        assert reader.complaints == ['[matroska,webm] File ended prematurely']
        assert 20 < len(reader) < 35
        numbers = list(range(0, len(reader), 3))
        assert read_numbers(reader.get_frames(numbers)[:, :24]) == numbers
    status = probe(path, deadline=DEADLINE).status
    assert re.fullmatch(r'(\d+) of \1 frames can be decoded: \[matroska,webm\] File ended prematurely', status)


def test_damage_that_the_decoder_conceals_is_reported(folder):
    whole = write_clip(folder / 'noise.mp4', 60, height=96, width=128, faststart=True, make_frame=noisy_frame)
    path = flip_bits(whole, folder / 'flipped.mp4', 3)
    for backend in BACKENDS:
        reader = open_video(path, backend, deadline=DEADLINE)
        assert len(reader) == 60
        assert reader.get_frames(range(60)).shape == (60, 96, 128, 3)
        assert any('error while decoding MB' in line for line in reader.complaints)
        assert open_video(whole, backend, deadline=DEADLINE).get_frames([59]).shape == (1, 96, 128, 3)


def test_frames_behind_a_break_are_an_error(folder):
    whole = write_clip(folder / 'long.mp4', 120, height=96, width=128, gop=40, faststart=True, make_frame=noisy_frame)
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 5] = bytes(len(content) // 5)
    path = folder / 'zeroed.mp4'
    path.write_bytes(content)
    for backend in BACKENDS:
        reader = open_video(path, backend, deadline=DEADLINE)
        assert read_numbers(reader.get_frames([0, 7])[:, :48]) == [0, 7]
        with pytest.raises(DecodeError, match=f'^cannot decode .*zeroed.mp4. with {backend}: '):
            reader.get_frames(range(40, 80))
    facts = probe(str(path), deadline=DEADLINE)
    assert facts.frames == 0
    assert re.fullmatch(r'\d+ of 120 frames can be decoded: Invalid data found .*', facts.status)


def damage_a_packet(path, number, byte, bit):
    """Change one bit of the header of a slice."""
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][number]
    content = bytearray(path.read_bytes())
    content[position + byte] ^= 1 << bit
    path.write_bytes(content)
    return path


def test_a_lost_frame_is_an_error_and_moves_no_other(folder):
    path = damage_a_packet(write_clip(folder / 'lost.mp4', 12, codec_options={'bf': '2'}), 3, byte=5, bit=5)
    assert read_numbers(open_video(path, 'pyav', deadline=DEADLINE).get_frames([0, 3, 9, 10])) == [0, 3, 9, 10]
    for backend, indices in (('pyav', [2]), ('pyav', range(12)), ('decord', range(12))):
        with pytest.raises(DecodeError) as caught:
            open_video(path, backend, deadline=DEADLINE).get_frames(indices)
        reason = 'frame 2 of 12 is lost, the file is damaged'
        assert str(caught.value) == f'cannot decode {str(path)!r} with {backend}: {reason}'


def test_decord_by_itself_shifts_the_frames_after_a_damaged_one(folder):
    """If this fails, decord is fixed, and recipes for H.264 may decode with either."""
    path = damage_a_packet(write_clip(folder / 'moved.mp4', 12, codec_options={'bf': '2'}), 3, byte=6, bit=3)
    decord, pyav = (open_video(path, backend, deadline=DEADLINE) for backend in BACKENDS)
    assert read_numbers(pyav.get_frames([0, 3, 9, 10])) == [0, 3, 9, 10]
    assert read_numbers(decord.get_frames([0, 3, 9, 10])) != [0, 3, 9, 10]
    assert decord.complaints == []


def test_a_frame_that_the_decoder_silently_marks_as_damaged_is_reported(folder):
    path = write_clip(folder / 'marked.mp4', 12, codec='mpeg4', gop=12, make_frame=noisy_frame)
    damage_a_packet(path, 5, byte=51, bit=6)
    reader = open_video(path, 'pyav', deadline=DEADLINE)
    reader.get_frames([0])
    assert reader.complaints == []
    reader.get_frames([5])
    assert reader.complaints == ['the frame at 0.4166666666666667 s is damaged']
