"""FolderSegDataset reads every layout and kind of mask, and names what does not fit before training."""

import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image
from rich.console import Console

from tests.segmentation.folders import COLOURS, SIZE, labels, save_image, save_mask, write_folder
from wsbcn_mm.segmentation import FolderSegDataset
from wsbcn_mm.segmentation.data import folder
from wsbcn_mm.segmentation.data.folder import find_splits
from wsbcn_mm.segmentation.data.prepare_folder import prepare_segmentation_folder

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadStrictLabels')]
PACK = [*LOAD, dict(type='PackSegInputs')]


@pytest.fixture(autouse=True)
def _scope() -> None:
    init_default_scope('mmseg')


def build(root: Path, split: str = 'train', **options) -> FolderSegDataset:
    options = dict(pipeline=LOAD) | options
    return DATASETS.build(dict(type='FolderSegDataset', data_root=str(root), split=split, **options))


def error_of(root: Path, split: str = 'train', **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        build(root, split, **options)
    return str(error.value)


def wrong(root: Path, split: str, problem: str) -> str:
    return f'data_root={str(root)!r}, split={split!r}: {problem}'


@pytest.mark.parametrize(
    'layout',
    [
        '{kind}/{split}/{name}',
        '{kind}/{split}/street 1/{name}',
        '{split}/{kind}/{name}',
        '{kind}/{split}ing/{name}',
    ],
)
@pytest.mark.parametrize('suffix', ['.png', '.JPG', '.bmp'])
def test_layouts_and_suffixes(tmp_path: Path, layout: str, suffix: str) -> None:
    names = {'train': ('a', 'b'), 'test': ('e',)}
    dataset = build(write_folder(tmp_path, layout=layout, suffix=suffix, names=names))
    assert [Path(item['img_path']).stem for item in dataset] == ['a', 'b']
    assert all(np.array_equal(item['gt_seg_map'], labels(ord(name))) for item, name in zip(dataset, 'ab', strict=True))
    assert len(build(tmp_path, 'test')) == 1
    assert dataset.metainfo['classes'] == ('floor', 'road', 'car')
    assert dataset.metainfo['label_ids'] == (0, 1, 2)
    assert dataset.metainfo['palette'] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert build(tmp_path, pipeline=PACK)[0]['inputs'].shape == (3, *SIZE)


def test_lists_in_their_order(tmp_path: Path) -> None:
    write_folder(tmp_path, layout='{kind}/{name}')
    (tmp_path / 'train.txt').write_text('d\nb.png\n\nimages/a.png\n')
    (tmp_path / 'valid.txt').write_text('\ufefff\r\n')
    assert [Path(item['img_path']).stem for item in build(tmp_path)] == ['d', 'b', 'a']
    assert [Path(item['seg_map_path']).stem for item in build(tmp_path, 'val')] == ['f']


def test_masks_of_all_splits_in_one_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, layout='{kind}/{split}/{name}')
    for mask in sorted((tmp_path / 'masks').glob('*/*')):
        mask.rename(tmp_path / 'masks' / mask.name)
    for split in ('train', 'val'):
        (tmp_path / 'masks' / split).rmdir()
    assert len(build(tmp_path)) == 4
    assert len(build(tmp_path, 'val')) == 2


def test_a_mask_folder_for_all_splits_with_endings(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for mask in sorted((tmp_path / 'masks').glob('*/*')):
        mask.rename(tmp_path / 'masks' / f'{mask.stem}.label.png')
    for split in ('train', 'val'):
        (tmp_path / 'masks' / split).rmdir()
    assert len(build(tmp_path)) == 4
    (tmp_path / 'masks/b.label.png').unlink()
    assert error_of(tmp_path) == wrong(
        tmp_path,
        'train',
        f'images/train/b.png has no mask masks/b.label.png; nearest existing name: {tmp_path}/masks/f.label.png',
    )


def test_a_listed_test_split_without_masks(tmp_path: Path) -> None:
    write_folder(tmp_path, layout='{kind}/{name}')
    save_image(tmp_path / 'images/x.png')
    for split, names in dict(train='a b c d', val='e f', test='x').items():
        (tmp_path / f'{split}.txt').write_text(names.replace(' ', '\n'))
    assert len(build(tmp_path, 'test', pipeline=LOAD[:1])) == 1
    assert "split='test' has no masks, so it cannot be evaluated" in error_of(tmp_path, 'test')


def test_masks_with_an_ending_of_their_own(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for mask in sorted((tmp_path / 'masks').glob('*/*')):
        mask.rename(mask.with_stem(f'{mask.stem}_mask'))
    assert [Path(item['seg_map_path']).name for item in build(tmp_path, 'val')] == ['e_mask.png', 'f_mask.png']
    (tmp_path / 'masks/val/e_mask.png').rename(tmp_path / 'masks/val/e.png')
    assert error_of(tmp_path, 'val') == wrong(
        tmp_path,
        'val',
        f'images/val/f.png has no mask masks/val/f.png; nearest existing name: {tmp_path}/masks/val/f_mask.png; '
        f'masks/val/f_mask.png has no image; nearest existing name: {tmp_path}/images/val/f.png',
    )


@pytest.mark.parametrize(
    ('classes', 'draw'),
    [
        ('floor 0\nroad 100\ncar 255\n', lambda label: np.array([0, 100, 255], np.uint8)[label]),
        ('floor 0 0 0\nroad 128 64 128\ncar 220 20 60\n', lambda label: COLOURS[label]),
        ('floor 5\nroad 6\ncar 700\n', lambda label: np.array([5, 6, 700], np.uint16)[label]),
    ],
)
def test_kinds_of_masks(tmp_path: Path, classes: str, draw) -> None:
    dataset = build(write_folder(tmp_path, classes, draw))
    assert np.array_equal(dataset[0]['gt_seg_map'], labels(ord('a')))
    assert dataset.metainfo.get('label_ids') == ((0, 100, 255) if 'car 255' in classes else None)


def test_a_value_outside_the_list_is_an_error_before_training_and_while_loading(tmp_path: Path, monkeypatch) -> None:
    root = write_folder(tmp_path)
    dataset = build(root)
    save_mask(root / 'masks/train/c.png', np.full(SIZE, 9, np.uint8))
    message = (
        f'mask {root}/masks/train/c.png has values outside classes.txt: 9 (192 pixels). Classes: 0-2; ignored: none'
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared
        dataset[2]
    assert str(error.value) == message
    assert error_of(root) == wrong(root, 'train', message)
    monkeypatch.setattr(folder, 'MASKS_READ', 2)  # a and c
    assert error_of(root) == wrong(root, 'train', message)
    monkeypatch.setattr(folder, 'MASKS_READ', 1)
    assert len(build(root)) == 4
    # What the manifest knows needs no reading.
    prepare_segmentation_folder(root, Console(file=StringIO()))
    monkeypatch.setattr(folder, 'read_mask', None)
    assert error_of(root) == wrong(root, 'train', message)
    assert len(build(root, 'val')) == 2


def test_what_does_not_fit(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / 'masks/val/e.png').unlink()
    assert error_of(tmp_path, 'val') == wrong(
        tmp_path,
        'val',
        'images/val/e.png has no mask masks/val/e.png; nearest existing name: ' + f'{tmp_path}/masks/val/f.png',
    )
    save_mask(tmp_path / 'masks/val/e.png', labels(0)[:, :-1])
    assert error_of(tmp_path, 'val') == wrong(
        tmp_path, 'val', 'images/val/e.png is 16 x 12 pixels, its mask masks/val/e.png 15 x 12'
    )
    assert len(build(tmp_path, 'train')) == 4
    (tmp_path / 'masks/val/e.png').unlink()
    save_mask(tmp_path / 'masks/val/e.jpg', labels(0))
    assert error_of(tmp_path, 'val') == wrong(
        tmp_path, 'val', 'masks/val/e.jpg is a JPEG, which changes values: save masks as PNG'
    )
    (tmp_path / 'images/val/e.png').write_bytes(b'')
    assert 'images/val/e.png is damaged, or of a format that Pillow does not read: ' in error_of(tmp_path, 'val')
    (tmp_path / 'images/val/e.png').unlink()
    (tmp_path / 'images/val/f.jpg').write_bytes((tmp_path / 'images/val/f.png').read_bytes())
    assert error_of(tmp_path, 'val') == wrong(
        tmp_path,
        'val',
        "2 files are named 'f': images/val/f.jpg, images/val/f.png; masks/val/e.jpg has no image; nearest existing "
        f'name: {tmp_path}/images/val/f.jpg',
    )


def test_many_problems_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    shutil.rmtree(tmp_path / 'masks/train')
    (tmp_path / 'masks/train').mkdir()
    text = error_of(tmp_path)
    assert text.count('has no mask') == 3
    assert text.endswith(f'; and 1 more, which python tools/data/prepare_folder.py {tmp_path} lists')
    shutil.rmtree(tmp_path / 'masks')
    assert error_of(tmp_path).startswith(wrong(tmp_path, 'train', 'masks/train does not exist; nearest existing'))


def test_an_orientation_that_loading_would_undo_for_the_image_alone(tmp_path: Path) -> None:
    write_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.open(tmp_path / 'images/val/e.png')
    image.save(tmp_path / 'images/val/e.jpg', exif=exif)
    (tmp_path / 'images/val/e.png').unlink()
    assert error_of(tmp_path, 'val') == wrong(
        tmp_path,
        'val',
        'images/val/e.jpg has EXIF orientation 3: loading turns the image and not its mask. Save the image upright '
        '(mogrify -auto-orient) if the mask fits what a viewer shows, else remove the tag',
    )


def test_lists_that_do_not_fit(tmp_path: Path) -> None:
    write_folder(tmp_path, layout='{kind}/{name}')
    (tmp_path / 'train.txt').write_text('a\na\nbb\n')
    (tmp_path / 'val.txt').write_text('\n')
    assert error_of(tmp_path) == wrong(
        tmp_path,
        'train',
        "train.txt has 'a' 2 times; train.txt has 'bb', which is no image; nearest existing name: "
        f'{tmp_path}/images/b.png',
    )
    assert error_of(tmp_path, 'val') == wrong(tmp_path, 'val', 'val.txt has no names')
    (tmp_path / 'images/val').mkdir()
    assert error_of(tmp_path) == (
        f'{tmp_path} has the sub-folders val in images/ and the lists train.txt, val.txt: keep one of the two'
    )


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / 'images').rename(tmp_path / 'image')
    assert error_of(tmp_path) == (
        f'{tmp_path}/images does not exist; nearest existing name: {tmp_path}/image. Accepted are images/ with masks/ '
        'beside it, both undivided or with train/ and val/, or train/ and val/ with images/ and masks/ in each'
    )
    (tmp_path / 'image').rename(tmp_path / 'images')
    assert error_of(tmp_path, 'test') == (
        f"split='test': {tmp_path} has 'train' ({tmp_path}/images/train), 'val' ({tmp_path}/images/val)"
    )
    assert error_of(tmp_path, 'validate') == "split='validate': 'train', 'val', 'test' are accepted"
    for file in (tmp_path / 'images/val').iterdir():
        file.rename(file.with_suffix('.heic'))
    assert error_of(tmp_path, 'val').startswith(
        wrong(tmp_path, 'val', 'images/val has no image, but 2 .heic. Accepted: .jpg .jpeg ')
    )
    flat = write_folder(tmp_path / 'flat', layout='{kind}/{name}')
    assert find_splits(flat) == {}
    assert error_of(flat) == (
        f"split='train': {flat} is not split yet. Run python tools/data/prepare_folder.py {flat}, which writes "
        'train.txt and val.txt'
    )


def test_a_test_split_without_masks(tmp_path: Path) -> None:
    write_folder(tmp_path)
    save_image(tmp_path / 'images/test/x.png')
    assert len(build(tmp_path, 'test', pipeline=LOAD[:1])) == 1
    assert error_of(tmp_path, 'test') == wrong(
        tmp_path,
        'test',
        "split='test' has no masks, so it cannot be evaluated: take split='val', or write its predictions with "
        'tools/test.py --format-only',
    )


def test_arguments_that_would_have_no_effect(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert error_of(tmp_path, img_suffix='.jpg') == (
        "img_suffix='.jpg': not accepted, FolderSegDataset finds its files by data_root and split"
    )
    assert error_of(tmp_path, reduce_zero_label=True) == (
        'reduce_zero_label=True: not accepted, FolderSegDataset takes classes.txt'
    )
    assert error_of(tmp_path, metainfo=dict(classes=['road', 'floor', 'car'])) == (
        f"metainfo.classes=['road', 'floor', 'car']: the classes of {tmp_path}/classes.txt are accepted, "
        "['floor', 'road', 'car']"
    )
    assert error_of(tmp_path, pipeline=[LOAD[0], dict(type='LoadAnnotations')]) == (
        'LoadAnnotations in the pipeline of FolderSegDataset: LoadStrictLabels is accepted, which refuses values '
        'outside classes.txt'
    )


def test_flips_of_classes_with_a_direction(tmp_path: Path) -> None:
    write_folder(tmp_path, 'floor\nleft_lung\nRight-Lung\n')
    flip = dict(type='RandomFlip', prob=0.5)
    assert error_of(tmp_path, pipeline=[*LOAD, flip]) == (
        "RandomFlip with the classes 'left_lung', 'Right-Lung': accepted with swap_seg_labels=[(1, 2)], because a "
        'mirror exchanges them'
    )
    assert build(tmp_path, pipeline=[*LOAD, dict(flip, swap_seg_labels=[(1, 2)])])
    assert build(tmp_path, pipeline=[*LOAD, dict(flip, direction='vertical')])
    assert error_of(tmp_path, pipeline=[*LOAD, dict(type='RandomRotFlip')]) == (
        "RandomRotFlip with the classes 'left_lung', 'Right-Lung': not accepted, because a mirror exchanges them. "
        'RandomFlip can, with swap_seg_labels'
    )
    (tmp_path / 'classes.txt').write_text('floor\nleft_lung\nlung\n')
    inner = dict(type='RandomChoice', transforms=[[flip], [dict(type='Resize', scale=(8, 8))]])
    assert error_of(tmp_path, pipeline=[*LOAD, inner]) == (
        "RandomFlip with the classes 'left_lung': not accepted, no class is the mirror image of some. Remove "
        'the flip, or rename classes without a direction'
    )
