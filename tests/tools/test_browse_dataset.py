"""Sheets of the demo's data, and of small trees with the layout of every real dataset."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from PIL import Image

from tests.segmentation.small_trees import cityscapes_tree
from tests.tools.tiny_runs import FOLDERS, ROOT, recipe, run_tool
from tests.video.clip_files import write_clip, write_frames
from wsbcn_mm.engine.data.sheets import GAP, LINE_HEIGHT, MARGIN


def cityscapes(root: Path) -> None:
    cityscapes_tree(root)


def voc(root: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'):
        (root / folder).mkdir(parents=True)
    for split, folder in dict(train='SegmentationClass', val='SegmentationClass', aug='SegmentationClassAug').items():
        label = np.full((40, 60), 255, np.uint8)
        label[4:-4, 4:-4] = 20
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(root / f'JPEGImages/{split}.jpg')
        Image.fromarray(label).save(root / folder / f'{split}.png')
        (root / f'ImageSets/Segmentation/{split}.txt').write_text(split + '\n')


def kinetics(root: Path) -> None:
    (root / 'label_map_k400.txt').write_text(''.join(f'class number {label}\n' for label in range(400)))
    for split in ('train', 'val'):
        (root / f'videos_{split}').mkdir(parents=True)
        write_clip(root / f'videos_{split}/a.mp4', num_frames=40, height=90, width=120)
        (root / f'kinetics400_{split}_list_videos.txt').write_text('a.mp4 7\n')


def something_v1(root: Path) -> None:
    (root / 'something-something-v1-labels.csv').write_text('Opening something\nClosing something\n')
    for split in ('train', 'validation'):
        (root / f'something-something-v1-{split}.csv').write_text('7;Closing something\n')
    write_frames(root / '20bn-something-something-v1/7', 12, height=90, width=120)


def something_v2(root: Path) -> None:
    (root / 'something-something-v2-labels.json').write_text(json.dumps({'Opening something': '0'}))
    for split in ('train', 'validation'):
        entry = dict(id='7', label='opening a door', template='Opening [something]', placeholders=['a door'])
        (root / f'something-something-v2-{split}.json').write_text(json.dumps([entry]))
    (root / '20bn-something-something-v2').mkdir()
    write_clip(root / '20bn-something-something-v2/7.webm', codec='libvpx-vp9', height=90, width=120)


def sheets(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[np.ndarray]:
    """Return the sheets that a run names in its output."""
    run_tool('browse_dataset.py', *arguments)
    files = [line for line in capsys.readouterr().out.splitlines() if line.endswith('.png')]
    return [np.asarray(Image.open(file)) for file in files]


@pytest.mark.parametrize('task', FOLDERS)
def test_demo(task: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f'train_dataloader.dataset.data_root={tiny_data / FOLDERS[task]}/'
    arguments = (recipe(task), '--out', tmp_path, '--number', '3', '--cfg-options', root)
    (page,) = sheets(capsys, *arguments)
    (again,) = sheets(capsys, *arguments)
    np.testing.assert_array_equal(page, again)
    assert (tmp_path / 'train_00.png').is_file()
    if task == 'segmentation':
        assert page.shape[0] > 2 * (2 * LINE_HEIGHT + 64) + LINE_HEIGHT
        below = page[-LINE_HEIGHT - MARGIN : -MARGIN].reshape(-1, 3)
        for colour in ([40, 40, 40], [230, 25, 75], [60, 180, 75], [245, 130, 48]):
            assert (below == colour).all(-1).sum() > 80, 'the legend has every class'
    else:
        assert page.shape[1] > 8 * 40
        assert page.shape[0] > 3 * (2 * LINE_HEIGHT + 40)


def test_what_is_drawn_is_what_the_files_have(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's scenes are neither cropped nor distorted, so the enlarged pixels are the file's."""
    options = [f'val_dataloader.dataset.data_root={tiny_data}/seg/', 'val_dataloader.dataset.indices=1']
    (page,) = sheets(capsys, recipe('segmentation'), '--out', tmp_path, '--split', 'val', '--cfg-options', *options)
    (file, *_) = sorted((tiny_data / 'seg/leftImg8bit/val').rglob('*.png'))
    image = np.asarray(Image.open(file))
    times = 784 // (2 * 64 + 4)
    drawn = page[MARGIN + 2 * LINE_HEIGHT :, MARGIN:][: 64 * times : times, : 64 * times : times]
    np.testing.assert_array_equal(drawn, image)


def test_frames_of_a_test_are_drawn_as_they_are(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model normalises them itself."""
    changed = dict(data_root=f'{tiny_data}/video/', indices=1)
    options = [f'val_dataloader.dataset.{name}={value}' for name, value in changed.items()]
    (page,) = sheets(capsys, recipe('video'), '--out', tmp_path, '--split', 'val', '--cfg-options', *options)
    (clip,) = DATASETS.build(Config.fromfile(recipe('video')).val_dataloader.dataset | changed)
    frames = clip['inputs'][0].permute(1, 2, 3, 0).numpy()
    assert frames.shape == (8, 40, 40, 3)
    times = 1568 // (8 * 40 + 7 * GAP)
    drawn = page[MARGIN + 2 * LINE_HEIGHT :, MARGIN:][: 40 * times : times, ::times]
    for number, frame in enumerate(frames):
        left = number * (40 + GAP)
        np.testing.assert_array_equal(drawn[:, left : left + 40], frame)


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize(
    ('build', 'name'),
    [
        (cityscapes, 'deeplabv3/deeplabv3_r50-d8_bcn-ws_1xb1-acc8-80k_cityscapes-769x769.py'),
        (voc, 'deeplabv3/deeplabv3_r101-d16_bcn-ws_1xb1-acc16-33k_voc12aug-513x513.py'),
        (kinetics, 'resnet3d/r3d-18_bcn-ws_1xb1-acc64-188k_kinetics400-16x4x1-112x112.py'),
        (something_v1, 'resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-67k_sthv1-8seg-224x224.py'),
        (something_v2, 'resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-132k_sthv2-8seg-224x224.py'),
    ],
)
def test_real_forms(build, name: str, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / 'data'
    root.mkdir()
    build(root)
    loader = f'{split}_dataloader.dataset'
    options = [f'{loader}.data_root={root}/']
    if build is voc and split == 'train':
        options = [f'{loader}.datasets.{number}.data_root={root}/' for number in (0, 1)]
    (page,) = sheets(
        capsys,
        str(ROOT / 'configs' / name),
        *('--out', tmp_path, '--split', split, '--number', '2'),
        *('--cfg-options', *options),
    )
    assert page.shape[1] > 700
    assert len(np.unique(page.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        (
            'deeplabv3/deeplabv3_r50-d8_bcn-ws_1xb1-acc8-80k_cityscapes-769x769.py',
            'FileNotFoundError: data/cityscapes/leftImg8bit/train does not exist; nearest existing folder: ., which is '
            'empty; ',
        ),
        (
            'deeplabv3/deeplabv3_r101-d16_bcn-ws_1xb1-acc16-33k_voc12aug-513x513.py',
            'FileNotFoundError: data/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt does not exist; nearest ',
        ),
        (
            'resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-67k_sthv1-8seg-224x224.py',
            'FileNotFoundError: data/sthv1/something-something-v1-labels.csv does not exist; nearest existing folder: ',
        ),
        ('resnet3d/r3d-19.py', "FileNotFoundError: recipe '"),
    ],
)
def test_missing_data_are_named_in_one_line(name: str, text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f'^{re.escape(text)}[^\n]*docs/data.md lists the files of each dataset and '):
        run_tool('browse_dataset.py', ROOT / 'configs' / name, '--out', tmp_path / 'sheets')
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_neither_task_is_refused(tmp_path: Path) -> None:
    other = tmp_path / 'other.py'
    other.write_text("default_scope = 'mmdet'\n")
    text = r"^ValueError: default_scope='mmdet': 'mmseg' .* or 'mmengine' \(video\) is expected; docs/data.md "
    with pytest.raises(SystemExit, match=text):
        run_tool('browse_dataset.py', other, '--out', tmp_path)
