"""The toy data sets: formats of the real ones, disjoint splits, reproducible files, the motion as the class."""

import hashlib
import inspect
import io
import json
from pathlib import Path

import av
import cv2
import decord
import numpy as np
import pytest
from mmseg.datasets import BaseSegDataset, CityscapesDataset
from mmseg.utils import register_all_modules
from rich.console import Console

from projects.toy_data import data
from projects.toy_data.appearance import split_digits
from projects.toy_data.clips import MOTIONS, clip_states, draw_clip, video_classes
from projects.toy_data.contact_sheet import write_contact_sheet
from projects.toy_data.scenes import seg_palette

SCENES = {'n_train': 12, 'n_val': 4, 'size': 64, 'digits': (1, 4, 7)}
CLIPS = {'n_train': 16, 'n_val': 8, 'size': 64, 'frames': 8}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('demo')
    quiet = Console(file=io.StringIO())
    data.build_segmentation(root, **SCENES, console=quiet)
    data.build_video(root, **CLIPS, console=quiet)
    return root


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    lines = [f'{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}' for path in files]
    return '\n'.join(lines)


def test_scenes_load_by_the_conventions_of_the_cityscapes_data_set(root):
    register_all_modules()
    suffixes = inspect.signature(CityscapesDataset.__init__).parameters
    classes = ('background', *map(str, SCENES['digits']))
    for split, count in (('train', 12), ('val', 4)):
        dataset = BaseSegDataset(
            img_suffix=suffixes['img_suffix'].default,
            seg_map_suffix=suffixes['seg_map_suffix'].default,
            data_root=str(root / 'seg'),
            data_prefix={'img_path': f'leftImg8bit/{split}', 'seg_map_path': f'gtFine/{split}'},
            metainfo={'classes': classes, 'palette': seg_palette(SCENES['digits'])},
            pipeline=[{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}],
        )
        assert len(dataset) == count
        seen = set()
        for item in dataset:
            assert item['img'].shape == (64, 64, 3)
            assert item['gt_seg_map'].shape == (64, 64)
            seen |= set(np.unique(item['gt_seg_map']))
        assert {0, 255} < seen <= {0, 1, 2, 3, 255}


def test_the_cityscapes_data_set_itself_finds_every_pair(root):
    dataset = CityscapesDataset(
        data_root=str(root / 'seg'), data_prefix={'img_path': 'leftImg8bit/val', 'seg_map_path': 'gtFine/val'}
    )
    assert len(dataset) == 4
    assert all(Path(dataset.get_data_info(index)['seg_map_path']).is_file() for index in range(4))


def test_labels_are_single_channel_bytes_and_images_are_colour(root):
    labels = next((root / 'seg/gtFine/train/china').glob('china_*_gtFine_labelTrainIds.png'))
    image = str(labels).replace('gtFine/', 'leftImg8bit/').replace('_gtFine_labelTrainIds', '_leftImg8bit')
    assert cv2.imread(str(labels), cv2.IMREAD_UNCHANGED).shape == (64, 64)
    assert cv2.imread(image, cv2.IMREAD_UNCHANGED).shape == (64, 64, 3)


def test_all_classes_occur_and_the_border_is_a_small_part(tmp_path):
    folder = data.build_segmentation(tmp_path, 60, 1, console=Console(file=io.StringIO()))
    maps = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((folder / 'gtFine/train').rglob('*.png'))]
    share = np.bincount(np.stack(maps).ravel(), minlength=256) / np.stack(maps).size
    assert (share[:11] > 0).all()
    assert share[11:255].sum() == 0
    assert 0.005 < share[255] < 0.08
    images = [cv2.imread(str(path)) for path in sorted((folder / 'leftImg8bit/train').rglob('*.png'))]
    means = [image.mean() for image in images]
    contrasts = [image.std() for image in images]
    assert np.std(means) > 25, 'the level must vary from image to image'
    assert np.percentile(contrasts, 90) / np.percentile(contrasts, 10) > 2.5, 'so must the contrast'


def test_train_and_val_digits_are_disjoint_and_complete():
    pools = {split: np.concatenate(list(split_digits(split, range(10), 3).values())) for split in ('train', 'val')}
    train, val = ({digit.tobytes() for digit in pools[split]} for split in ('train', 'val'))
    assert not train & val
    assert len(pools['train']) + len(pools['val']) == 1797
    assert len(pools['val']) == 359


def test_clips_decode_with_both_decoders(root):
    entries = json.loads((root / 'video/something-something-v2-train.json').read_text())
    path = str(root / 'video/videos' / f'{entries[0]["id"]}.mp4')
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ('h264', 'yuv420p')
        assert float(stream.average_rate) == 12
        frames = np.stack([frame.to_ndarray(format='rgb24') for frame in container.decode(stream)])
    reader = decord.VideoReader(path)
    assert len(reader) == 8
    assert frames.shape == (8, 64, 64, 3)
    picked = reader.get_batch([7, 0, 3]).asnumpy()
    assert np.abs(picked.astype(int) - frames[[7, 0, 3]]).mean() < 4


def test_annotations_follow_something_something(root):
    labels = json.loads((root / 'video/something-something-v2-labels.json').read_text())
    assert list(labels) == list(video_classes())
    assert list(labels.values()) == [str(index) for index in range(8)]
    ids = []
    for split, count in (('train', 16), ('validation', 8)):
        entries = json.loads((root / f'video/something-something-v2-{split}.json').read_text())
        assert len(entries) == count
        for entry in entries:
            assert set(entry) == {'id', 'label', 'template', 'placeholders'}
            assert entry['template'].replace('[something]', 'something') in labels
            assert entry['label'] == entry['template'].replace('[something]', entry['placeholders'][0])
            assert (root / 'video/videos' / f'{entry["id"]}.mp4').is_file()
        indices = [int(labels[entry['template'].replace('[', '').replace(']', '')]) for entry in entries]
        assert np.bincount(indices).tolist() == [count // 8] * 8
        ids += [entry['id'] for entry in entries]
    assert len(set(ids)) == 24
    assert len(list((root / 'video/videos').iterdir())) == 24


@pytest.mark.parametrize('template', list(MOTIONS))
def test_a_class_is_its_twin_played_backwards(template):
    coordinate, sign = MOTIONS[template]
    (twin,) = (other for other, motion in MOTIONS.items() if motion == (coordinate, -sign))
    for seed in range(20):
        path = clip_states(np.random.default_rng(seed), template, 16, 64)
        reverse = clip_states(np.random.default_rng(seed), twin, 16, 64)[::-1]
        np.testing.assert_allclose(path, reverse, atol=1e-9)
        travelled = path[-1] - path[0]
        assert np.sign(travelled[('x', 'y', 'size', 'angle').index(coordinate)]) == sign
        assert np.count_nonzero(np.abs(travelled) > 1e-9) == 1


def test_the_middle_of_a_clip_does_not_depend_on_the_class():
    middles = [clip_states(np.random.default_rng(5), template, 17, 64)[8] for template in MOTIONS]
    np.testing.assert_allclose(middles, np.broadcast_to(middles[0], (8, 4)))


def test_frames_of_twins_agree_up_to_shake_and_flicker():
    ink = split_digits('train', [3], 0)[3][0]

    def clip(template):
        return draw_clip(np.random.default_rng(11), ink, template, 'train', 16, 64).astype(int)

    forward = clip('Moving [something] from left to right')
    backward = clip('Moving [something] from right to left')
    assert np.abs(forward - backward[::-1]).mean() < 0.5 * np.abs(forward - backward).mean()


def test_turning_clockwise_is_clockwise_on_the_screen():
    ink = np.zeros((8, 8), np.float32)
    ink[3:5, 4:] = 1
    upright = data.appearance.warp_digit(ink, (31.5, 31.5), 40, 0, 64)
    turned = data.appearance.warp_digit(ink, (31.5, 31.5), 40, 90, 64)
    rows, columns = np.nonzero(upright > 0.5)
    assert columns.mean() > 36
    assert abs(rows.mean() - 31.5) < 3
    rows, columns = np.nonzero(turned > 0.5)
    assert rows.mean() > 36, 'a hand that points right points down after a quarter turn clockwise'
    assert abs(columns.mean() - 31.5) < 3


def test_the_same_seed_gives_the_same_bytes(root, tmp_path):
    quiet = Console(file=io.StringIO())
    again = data.build_segmentation(tmp_path, **SCENES, console=quiet)
    assert digest(again) == digest(root / 'seg')
    again = data.build_video(tmp_path, **CLIPS, console=quiet)
    assert digest(again) == digest(root / 'video')
    other = data.build_segmentation(tmp_path, **SCENES, seed=1, console=quiet)
    assert digest(other / 'gtFine') != digest(root / 'seg/gtFine')


def test_a_second_call_writes_nothing_and_a_lost_file_is_noticed(tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    folder = data.build_segmentation(tmp_path, **SCENES, console=console)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    data.build_segmentation(tmp_path, **SCENES, console=console)
    assert f'{folder}: 12 + 4 scenes exist already' in screen.getvalue().replace('\n', '')
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    lost = next((folder / 'gtFine').rglob('*.png'))
    lost.unlink()
    data.build_segmentation(tmp_path, **SCENES, console=console)
    assert lost.is_file()


def test_an_interrupted_build_leaves_no_incomplete_set(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.clips, 'write_mp4', fail)
    with pytest.raises(KeyboardInterrupt):
        data.build_video(tmp_path, **CLIPS, console=Console(file=io.StringIO()))
    assert not (tmp_path / 'video').exists()


def test_foreign_files_are_never_removed(tmp_path):
    (tmp_path / 'seg').mkdir()
    (tmp_path / 'seg/mine.txt').write_text('keep')
    with pytest.raises(ValueError, match='choose another root or empty the folder') as caught:
        data.build_segmentation(tmp_path, **SCENES)
    assert str(caught.value).startswith(f'{tmp_path / "seg"} has files but no manifest.json')
    assert (tmp_path / 'seg/mine.txt').read_text() == 'keep'


@pytest.mark.parametrize(
    ('build', 'wrong', 'text'),
    [
        ('build_segmentation', {'n_train': 0}, 'n_train=0, n_val=200: at least 1 of each is expected'),
        ('build_segmentation', {'digits': (1, 12)}, 'digits=[1, 12]: different numbers from 0 to 9 are expected'),
        (
            'build_segmentation',
            {'digit_size': (48, 20)},
            'digit_size=[48, 20]: two numbers in order, from 8 to 96, are expected',
        ),
        ('build_video', {'size': 33}, 'size=33: an even number (for H.264 yuv420p), at least 16, is expected'),
        ('build_video', {'frames': 1}, 'frames=1, fps=12: at least 2 frames and 1 frame per second are expected'),
    ],
)
def test_bad_parameters_are_named(tmp_path, build, wrong, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole text is compared below)
        getattr(data, build)(tmp_path, **wrong)
    assert str(caught.value) == text


def test_command_line_builds_both_sets_and_the_contact_sheet(tmp_path):
    sheet = tmp_path / 'sheet.png'
    data.main(
        ['--root', str(tmp_path / 'set'), '--scenes', '4', '4', '--clips', '8', '8', '--contact-sheet', str(sheet)]
    )
    assert cv2.imread(str(sheet)).shape[1] > 1000
    assert len(list((tmp_path / 'set/video/videos').iterdir())) == 16


def test_a_contact_sheet_without_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='has neither seg nor video'):
        write_contact_sheet(tmp_path, tmp_path / 'sheet.png')
