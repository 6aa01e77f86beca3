"""Clip strips: frames in order and in their colours, a caption, and the requested number of files."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from wsbcn_mm.engine.data.sheets import GAP, LINE_HEIGHT
from wsbcn_mm.video.evaluation.strips import ClipStripHook, class_name, strip


def clip(frames=3, height=20, width=24, seed=0):
    return torch.randint(0, 256, (3, frames, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))


def sample(path, truth, *scores):
    return SimpleNamespace(path=path, gt_label=torch.tensor(truth), pred_score=torch.tensor(scores))


def runner(tmp_path, classes=('left', 'right')):
    dataset = SimpleNamespace(metainfo=dict(classes=classes))
    return SimpleNamespace(work_dir=str(tmp_path), test_dataloader=SimpleNamespace(dataset=dataset))


def test_frames_stand_in_order_with_gaps_under_the_caption():
    frames = clip(frames=3, height=20, width=24)
    picture = strip(frames, ['left', 'right'])
    above = 2 * LINE_HEIGHT
    assert picture.dtype == np.uint8
    assert picture.shape == (above + 20, 3 * (24 + GAP) - GAP, 3)
    for index in range(3):
        left = index * (24 + GAP)
        expected = frames[:, index].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(picture[above:, left : left + 24], expected)
        assert (picture[above:, left + 24 : left + 24 + GAP] == 255).all()
    first, second = picture[:LINE_HEIGHT], picture[LINE_HEIGHT:above]
    assert all(line.min() < 64 and (line == 255).mean() > 0.5 for line in (first, second))
    np.testing.assert_array_equal(first, strip(frames, ['left'])[:LINE_HEIGHT])
    np.testing.assert_array_equal(second, strip(frames, ['right'])[:LINE_HEIGHT])


def test_a_caption_longer_than_the_frames_is_not_cut():
    frames = clip(frames=1, width=24)
    text = 'prediction: Moving something away from the camera (14%)'
    picture, longer = strip(frames, [text]), strip(frames, [f'{text}.'])
    assert picture.shape[1] > 8 * 24
    assert longer.shape[1] > picture.shape[1]
    assert (picture[:, -1] == 255).all()
    assert (picture[LINE_HEIGHT:, 24:] == 255).all()


def test_one_frame_without_a_caption_is_that_frame():
    frames = clip(frames=1)
    np.testing.assert_array_equal(strip(frames, []), frames[:, 0].permute(1, 2, 0).numpy())


def test_class_names_fall_back_to_numbers():
    assert class_name(('left', 'right'), 1) == 'right'
    assert class_name(None, 7) == 'class 7'


def test_the_first_view_of_the_first_clips_is_saved_over_all_batches(tmp_path):
    hook = ClipStripHook(max_images=3)
    hook.before_test(runner(tmp_path))
    views = [torch.stack([clip(seed=2 * i), clip(seed=2 * i + 1)]) for i in range(4)]
    samples = [sample(f'videos/v{i}.mp4', i % 2, 0.25, 0.75) for i in range(4)]
    for batch in (slice(0, 2), slice(2, 4)):
        hook.after_test_iter(runner(tmp_path), 0, dict(inputs=views[batch]), samples[batch])
    files = sorted((tmp_path / 'strips').glob('*'))
    assert [file.name for file in files] == ['0000_v0.png', '0001_v1.png', '0002_v2.png']
    for index, file in enumerate(files):
        caption = [f'truth: {("left", "right")[index % 2]}', 'prediction: right (75%)']
        np.testing.assert_array_equal(np.asarray(Image.open(file)), strip(views[index][0], caption))


def test_a_second_test_starts_again_and_a_folder_can_be_given(tmp_path):
    hook = ClipStripHook(out_dir=tmp_path / 'elsewhere', max_images=1)
    for name in ('a.mp4', 'b.mp4'):
        hook.before_test(runner(tmp_path))
        hook.after_test_iter(runner(tmp_path, None), 0, dict(inputs=[clip()[None]]), [sample(name, 0, 0.9, 0.1)])
    assert sorted(file.name for file in (tmp_path / 'elsewhere').iterdir()) == ['0000_a.png', '0000_b.png']
    assert not (tmp_path / 'strips').exists()


def test_none_are_saved_when_none_are_wanted(tmp_path):
    hook = ClipStripHook(max_images=0)
    hook.after_test_iter(runner(tmp_path), 0, dict(inputs=[clip()[None]]), [sample('a.mp4', 0, 0.9, 0.1)])
    assert list(tmp_path.iterdir()) == []


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match=r'^max_images=-1: a number >= 0 is expected$'):
        ClipStripHook(max_images=-1)
