import re

import pytest
import torch
from mmengine.registry import TRANSFORMS
from torchvision.transforms.v2 import functional as F

import wsbcn_mm.video  # noqa: F401
from tests.video.clip_files import read_numbers, write_clip, write_frames
from wsbcn_mm.video.data.transforms import (
    CenterCropClip,
    DecodeClip,
    FlipClip,
    MultiScaleCropClip,
    PackClipInputs,
    RandomResizedCropClip,
    ResizeClip,
    ThreeCropClip,
    mirror_labels,
)

SOMETHING_V2_NAMES = [
    'Approaching something with your camera',
    'Pulling something from left to right',
    'Pulling something from right to left',
    'Pushing something from left to right',
    'Pushing something from right to left',
    'Putting something upright on the table',
    'Turning the camera left while filming something',
    'Turning the camera right while filming something',
]


def make_results(views=1, frames=4, height=40, width=60, **extra):
    """Clips in the decoder's memory order; pixel values encode frame, row and column."""
    shape = (views, frames, height, width, 3)
    clips = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {'clips': clips.permute(0, 1, 4, 2, 3), 'label': 3, 'path': 'a.mp4', **extra}


def gradient(height, width, frames=3):
    """(1, T, 3, H, W): red is the row, green the column, the same in every frame."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None].expand(height, width)
    picture = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    return picture.expand(1, frames, 3, height, width)


def test_decode_gives_views_frames_channels(tmp_path):
    path = str(write_clip(tmp_path / 'a b.mp4', num_frames=30, height=48, width=72))
    decode = TRANSFORMS.build(
        {
            'type': 'DecodeClip',
            'sampler': {'type': 'dense', 'clip_len': 4, 'interval': 3, 'num_clips': 2},
            'random': False,
        }
    )
    results = decode({'path': path, 'label': 0})
    assert results['clips'].shape == (2, 4, 3, 48, 72)
    assert results['frame_indices'] == [[0, 3, 6, 9], [20, 23, 26, 29]]
    for clip, numbers in zip(results['clips'], results['frame_indices'], strict=True):
        assert read_numbers(clip.permute(0, 2, 3, 1)) == numbers
    assert results['total_frames'] == 30
    assert results['fps'] == pytest.approx(12)


def test_decode_a_folder_of_frames(tmp_path):
    folder = write_frames(tmp_path / '100218', 16, template='img_{:05d}.jpg')
    decode = DecodeClip(
        {'type': 'segments', 'num_segments': 8}, random=False, backend='frames', template='img_{:05d}.jpg'
    )
    results = decode({'path': str(folder)})
    assert results['frame_indices'] == [[1, 3, 5, 7, 9, 11, 13, 15]]
    assert read_numbers(results['clips'][0].permute(0, 2, 3, 1)) == results['frame_indices'][0]


def test_decode_at_random_differs_and_follows_the_seed(tmp_path):
    path = str(write_clip(tmp_path / 'a.mp4', num_frames=60))
    decode = DecodeClip({'type': 'segments', 'num_segments': 4}, random=True)
    torch.manual_seed(0)
    draws = [decode({'path': path})['frame_indices'] for _ in range(3)]
    torch.manual_seed(0)
    assert decode({'path': path})['frame_indices'] == draws[0]
    assert draws[0] != draws[1]


@pytest.mark.parametrize(
    ('height', 'width', 'size', 'expected'),
    [(40, 60, 20, (20, 30)), (60, 40, 20, (30, 20)), (41, 61, 64, (64, 95)), (40, 60, (16, 16), (16, 16))],
)
def test_resize_short_side(height, width, size, expected):
    results = make_results(height=height, width=width)
    before = results['clips']
    after = ResizeClip(size)(results)['clips']
    assert after.shape == (1, 4, 3, *expected)
    assert after.dtype == torch.uint8
    alone = F.resize(before[0, 2].contiguous(), list(expected), antialias=True)
    assert (after[0, 2].int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize('crop', [RandomResizedCropClip(16), MultiScaleCropClip(16)])
@pytest.mark.parametrize(('height', 'width'), [(40, 60), (61, 33), (1, 1), (200, 20)])
def test_random_crops_have_the_size_and_one_place_for_all_frames(crop, height, width):
    torch.manual_seed(0)
    places = set()
    for _ in range(20):
        clips = crop({'clips': gradient(height, width), 'path': 'a.mp4'})['clips']
        assert clips.shape == (1, 3, 3, 16, 16)
        assert (clips[0, 0] == clips[0, 1]).all()
        places.add((int(clips[0, 0, 0, 0, 0]), int(clips[0, 0, 1, 0, 0])))
    assert len(places) > 3 or min(height, width) < 2


def test_random_resized_crop_keeps_its_limits():
    torch.manual_seed(0)
    crop = RandomResizedCropClip(16, scale=(0.25, 0.5), ratio=(0.5, 2.0))
    for _ in range(200):
        top, left, height, width = crop.rectangle(80, 120)
        assert 0 <= top <= 80 - height
        assert 0 <= left <= 120 - width
        assert 0.24 <= height * width / (80 * 120) <= 0.52
        assert 0.48 <= width / height <= 2.08
    assert RandomResizedCropClip(16).rectangle(1000, 10) == (493, 0, 13, 10)


def test_multi_scale_pairs_are_neighbours_and_places_reach_the_borders():
    crop = MultiScaleCropClip(16)
    assert len(crop.pairs) == 10
    assert (1.0, 0.75) not in crop.pairs
    torch.manual_seed(0)
    whole = MultiScaleCropClip(32, scales=(0.5,))
    corners = [whole({'clips': gradient(64, 64)})['clips'][0, 0, :2, 0, 0].tolist() for _ in range(200)]
    assert {tuple(corner) for corner in corners} == {(row, column) for row in (0, 16, 32) for column in (0, 16, 32)} | {
        (8, 8),
        (8, 24),
        (24, 8),
        (24, 24),
    }


def test_center_crop_and_three_crops():
    results = {'clips': gradient(40, 60), 'path': 'a.mp4'}
    assert CenterCropClip(20)(dict(results))['clips'][0, 0, :2, 0, 0].tolist() == [10, 20]
    wide = ThreeCropClip(40)(dict(results))['clips']
    assert wide.shape == (3, 3, 3, 40, 40)
    assert wide[:, 0, 1, 0, 0].tolist() == [0, 10, 20]
    tall = ThreeCropClip(30)({'clips': gradient(60, 40), 'path': 'a.mp4'})['clips']
    assert tall[:, 0, 0, 0, 0].tolist() == [0, 15, 30]
    assert tall[:, 0, 1, 0, 0].tolist() == [5, 5, 5]


def test_three_crops_of_one_temporal_clip_lie_beside_each_other():
    results = make_results(views=2, height=20, width=30)
    clips = results['clips']
    crops = ThreeCropClip(20)(results)['clips']
    assert crops.shape == (6, 4, 3, 20, 20)
    for view, (clip, left) in enumerate((clip, left) for clip in range(2) for left in (0, 5, 10)):
        assert torch.equal(crops[view], clips[clip, ..., left : left + 20])


@pytest.mark.parametrize('crop', [CenterCropClip(32), ThreeCropClip(32)])
def test_a_crop_larger_than_the_frame_is_refused(crop):
    text = "a crop of 32 x 32 does not fit frames of 31 x 50 (height x width) of 'a.mp4': resize first"
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        crop(make_results(height=31, width=50))


def test_mirror_labels_from_names():
    mirrored = mirror_labels(SOMETHING_V2_NAMES)
    assert mirrored == [0, 2, 1, 4, 3, 5, 7, 6]
    assert [mirrored[label] for label in mirrored] == list(range(8))
    assert mirror_labels(['Waving left', 'Left or Right', 'Right or Left', 'brightly leftover']) == [None, 2, 1, 3]


def official_names(labels: dict[int, str]) -> list[str]:
    """A list of 174 classes, some of them at their official positions."""
    return [labels.get(label, f'Doing something {label} upright') for label in range(174)]


@pytest.mark.parametrize(
    'labels',
    [
        {
            50: 'Plugging something into something but pulling it right out as you remove your hand',
            86: 'Pulling something from left to right',
            87: 'Pulling something from right to left',
            93: 'Pushing something from left to right',
            94: 'Pushing something from right to left',
            166: 'Turning the camera left while filming something',
            167: 'Turning the camera right while filming something',
        },
        {
            2: 'Turning the camera left while filming something',
            4: 'Turning the camera right while filming something',
            30: 'Pushing something from left to right',
            41: 'Pushing something from right to left',
            52: 'Pulling something from right to left',
            66: 'Pulling something from left to right',
        },
    ],
    ids=['v2', 'v1'],
)
def test_mirror_labels_of_the_official_lists_are_the_known_pairs(labels):
    mirrored = mirror_labels(official_names(labels))
    turned = [label for label, name in labels.items() if 'right out' not in name]
    first, second = turned[::2], turned[1::2]
    pairs = {label: other for label, other in enumerate(mirrored) if label != other}
    assert pairs == dict(zip(first + second, second + first, strict=True))


def test_a_plain_flip_leaves_both_labels():
    flipped = FlipClip(1.0)(make_results(mirrored_label=5))
    assert (flipped['label'], flipped['mirrored_label']) == (3, 5)


def test_flip_moves_the_label_with_the_frames():
    results = make_results(mirrored_label=5)
    before = results['clips']
    flip = FlipClip(prob=1.0, swap_labels=True)
    flipped = flip(results)
    assert torch.equal(flipped['clips'], before.flip(-1))
    assert (flipped['label'], flipped['mirrored_label']) == (5, 3)
    twice = flip(flipped)
    assert torch.equal(twice['clips'], before)
    assert (twice['label'], twice['mirrored_label']) == (3, 5)


def test_flip_without_labels_and_of_classes_without_mirror_image():
    results = make_results(mirrored_label=None)
    before = results['clips']
    assert torch.equal(FlipClip(1.0, swap_labels=True)(results)['clips'], before)
    plain = FlipClip(1.0)(make_results())
    assert torch.equal(plain['clips'], before.flip(-1))
    assert plain['label'] == 3
    assert torch.equal(FlipClip(0.0)(make_results())['clips'], before)
    with pytest.raises(ValueError, match=r'FlipClip\(swap_labels=True\) needs a dataset with class names'):
        FlipClip(1.0, swap_labels=True)(make_results())


def test_pack():
    results = make_results(views=2, sample_idx=7, frame_indices=[[0, 1, 2, 3]] * 2, total_frames=9, fps=12.0)
    packed = PackClipInputs()(results)
    assert packed['inputs'].shape == (2, 3, 4, 40, 60)
    assert packed['inputs'].dtype == torch.uint8
    assert packed['inputs'].is_contiguous()
    assert torch.equal(packed['inputs'][1, :, 2], results['clips'][1, 2])
    sample = packed['data_samples']
    assert torch.equal(sample.gt_label, torch.tensor(3))
    assert sample.metainfo == {
        'path': 'a.mp4',
        'sample_idx': 7,
        'frame_indices': [[0, 1, 2, 3]] * 2,
        'total_frames': 9,
        'fps': 12.0,
    }


@pytest.mark.parametrize(
    ('make', 'text'),
    [
        (lambda: ResizeClip(0), 'size=0: a positive int'),
        (lambda: RandomResizedCropClip(8, scale=(0.5, 2.0)), r'scale=\(0.5, 2.0\): 0 < smallest'),
        (lambda: RandomResizedCropClip(8, ratio=(2.0, 0.5)), r'ratio=\(2.0, 0.5\)'),
        (lambda: MultiScaleCropClip(8, scales=(1.2,)), r'scales=\(1.2,\): factors in \(0, 1\]'),
        (lambda: FlipClip(1.5), r'prob=1.5: a probability in \[0, 1\] is expected'),
        (lambda: DecodeClip({'type': 'dense'}, random=True), 'sampler'),
        (lambda: DecodeClip({'type': 'segments', 'num_segments': 8}, random=True, backend='cv2'), "backend='cv2'"),
    ],
)
def test_bad_arguments_fail_when_the_pipeline_is_built(make, text):
    with pytest.raises(ValueError, match=text):
        make()
