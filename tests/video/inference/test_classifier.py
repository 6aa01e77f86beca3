"""Clips and windows of small models, and the pictures of their results."""

import re

import av
import numpy as np
import pytest
import torch
from torchvision.io import write_jpeg

from tests.inference.small_models import save, video_config
from tests.video.clip_files import read_number, write_clip
from wsbcn_mm.inference import load
from wsbcn_mm.video.data.sampling import segment_indices
from wsbcn_mm.video.decoding.reader import DecodeError
from wsbcn_mm.video.inference.clips import Frames, Sampler, all_in_order, numbering, read_in_order, starts
from wsbcn_mm.video.inference.pictures import annotate, clock, strip, timeline
from wsbcn_mm.video.inference.results import ClipResult, WindowsResult

CLASSES = ('run', 'walk', 'jump', 'sit')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return load(save(video_config(), tmp_path_factory.mktemp('model') / 'c.pth', CLASSES), device='cpu')


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp('clips') / 'clip.mp4', num_frames=40, rate=10)


def test_a_result_has_names_and_scores(model, clip):
    result = model(clip)
    assert isinstance(result, ClipResult)
    assert result.source == str(clip)
    assert result.scores.sum() == pytest.approx(1)
    assert result.name == CLASSES[result.label] == result.top(1)[0].name
    assert [one.score for one in result.top(9)] == sorted(result.scores, reverse=True)
    assert result.frames.shape == (4, 32, 40, 3)
    assert str(result).startswith(f'{clip}: {result.name} ')


def test_a_folder_of_numbered_images_is_a_clip(model, clip, tmp_path):
    frames = model.open(clip).read(torch.arange(40))
    folder = tmp_path / 'frames'
    folder.mkdir()
    for number, frame in enumerate(frames):
        write_jpeg(frame.permute(2, 0, 1), str(folder / f'img_{number + 3}.jpg'), quality=95)
    result = model(folder)
    assert result.source == str(folder)
    assert result.scores == pytest.approx(model(clip).scores, abs=0.1)
    assert isinstance(model(tmp_path), list)
    with pytest.raises(ValueError, match=r'has no frame rate: give it with --fps \(fps= in Python\)$'):
        model(folder, window=1.0)
    assert len(model(folder, window=1.0, fps=10).first_frames) == 7


def test_a_recipe_of_folders_reads_files_too(clip, tmp_path):
    cfg = video_config(backend='frames', template='{:04d}.png')
    model = load(save(cfg, tmp_path / 'c.pth', CLASSES), device='cpu')
    expected = model(clip)
    for number, frame in enumerate(model.open(clip).read(torch.arange(40)), 1):
        av.VideoFrame.from_ndarray(frame.numpy(), format='rgb24').to_image().save(tmp_path / f'{number:04d}.png')
    (tmp_path / 'c.pth').unlink()
    assert np.array_equal(model(tmp_path).scores, expected.scores)


def test_numbering_of_folders(tmp_path):
    for name in ('f8.png', 'f9.png', 'f10.png', 'cover.png'):
        (tmp_path / name).touch()
    assert numbering(tmp_path) == dict(template='f{:d}.png', start=8)
    for name in ('f8.png', 'f9.png', 'f10.png'):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r'has no numbered images, such as 00001\.jpg, 00002\.jpg$'):
        numbering(tmp_path)


def test_windows_slide_over_the_video(model, clip):
    shares = []
    result = model(clip, window=1.0, step=0.4, batch_size=3, advance=shares.append)
    assert isinstance(result, WindowsResult)
    assert result.first_frames.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert sum(shares) == pytest.approx(1)
    assert (result.fps, result.total_frames, result.window_frames) == (10.0, 40, 10)
    whole = model.open(clip).read(torch.arange(40))
    for first, scores, frame in zip(result.first_frames, result.scores, result.frames, strict=True):
        alone = model(whole[first : first + 10].numpy())
        assert scores == pytest.approx(alone.scores, abs=1e-5)
        assert np.array_equal(frame, alone.frames[2])
    windows = list(result.windows(2))
    assert (windows[1].start, windows[1].end) == (0.4, 1.4)
    assert (windows[-1].start, windows[-1].end) == (3.0, 4.0)
    assert windows[0].classes[0].score == result.scores[0].max()
    assert [result.window_at(frame) for frame in (0, 4, 5, 39)] == [0, 0, 0, 8]
    assert 'clip.mp4, 4.0 s in 9 windows: ' in str(result)


def test_a_window_spans_what_a_dense_clip_spans(tmp_path, clip):
    cfg = video_config(sampler=dict(type='dense', clip_len=4, interval=3, num_clips=5))
    model = load(save(cfg, tmp_path / 'c.pth', CLASSES), device='cpu')
    result = model(clip, window=0)
    assert result.window_frames == 10
    assert result.first_frames.tolist() == [0, 5, 10, 15, 20, 25, 30]
    assert Sampler(cfg.test_dataloader.dataset.pipeline[0])(40).shape == (5, 4)
    short = write_clip(tmp_path / 'short.mp4', num_frames=5, rate=10)
    assert model(short, window=0).first_frames.tolist() == [0]
    assert next(iter(model(short, window=0).windows())).end == 0.5


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(window=0), r"^window=0: the recipe's clips span no fixed number of frames; give seconds$"),
        (dict(window=-1), r'^window=-1: seconds above 0 are expected$'),
        (dict(window=1, step=0), r'^step=0: seconds above 0 are expected$'),
        (dict(step=1), r'^step=1: it goes with window$'),
    ],
)
def test_windows_that_make_no_sense_are_refused(model, clip, options, message):
    with pytest.raises(ValueError, match=message):
        model(clip, **options)


def test_what_is_not_a_video_is_named(model, tmp_path):
    (tmp_path / 'text.mp4').write_text('a text\n' * 99)
    (tmp_path / 'empty.mp4').touch()
    for name in ('text.mp4', 'empty.mp4'):
        with pytest.raises(DecodeError, match=rf"^cannot decode '.*{name}' with decord: \S.*$") as caught:
            model(tmp_path / name)
        assert '\n' not in str(caught.value)
    for shape in ((4, 5, 3), (4, 5, 6, 4)):
        with pytest.raises(
            ValueError, match=rf'^array of shape {re.escape(str(shape))}, uint8: a video \(frames, height'
        ):
            model(np.zeros(shape, np.uint8))


def test_frames_are_read_once_and_in_order():
    asked = []

    def read(indices):
        asked.extend(indices.tolist())
        return indices[:, None, None, None].expand(-1, 2, 2, 3).to(torch.uint8)

    frames = Frames(None, 40, 1.0, read, [])
    wanted = [segment_indices(10, 4, random=False).flatten() + first for first in starts(40, 10, 5)]
    assert [int(frame[0, 0, 0]) for frame in all_in_order(frames)] == list(range(40))
    asked.clear()
    for numbers, pixels in zip(wanted, read_in_order(frames, wanted), strict=True):
        assert pixels[:, 0, 0, 0].tolist() == numbers.tolist()
    assert asked == sorted({number for numbers in wanted for number in numbers.tolist()})


@pytest.mark.parametrize(('seconds', 'text'), [(0.04, '0:00.0'), (65.25, '1:05.2'), (3723.4, '1:02:03.4')])
def test_times(seconds, text):
    assert clock(seconds) == text


def test_pictures_of_clips_and_windows(model, clip):
    picture = strip(model(clip))
    assert picture.shape[1] == 4 * 192 + 3 * 4
    picture = timeline(model(clip, window=1.0))
    assert picture.shape[1] == 6 * 192 + 5 * 4
    assert picture.dtype == np.uint8


@pytest.mark.parametrize('size', [(48, 72), (45, 71), (720, 1400)])
def test_annotated_videos_show_every_frame_and_the_classes_below(model, tmp_path, size):
    file = write_clip(tmp_path / 'clip.mp4', 24, *size, rate=10, pix_fmt='yuv444p')
    result = model(file, window=1.0)
    annotate(result, model.open(file), tmp_path / 'annotated.mp4')
    with av.open(str(tmp_path / 'annotated.mp4')) as container:
        assert container.streams.video[0].average_rate == 10
        shown = [torch.from_numpy(frame.to_ndarray(format='rgb24')) for frame in container.decode(video=0)]
    assert len(shown) == 24
    height, width = (round(720 * 1280 / 1400), 1280) if size[1] > 1280 else size
    left = (shown[0].shape[1] - width) // 2
    assert [read_number(frame[:height, left : left + width]) for frame in shown] == list(range(24))
    assert shown[0].shape[0] > height + 50
    assert (shown[0][height + 30 :] > 200).any()
