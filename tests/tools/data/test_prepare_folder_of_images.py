"""tools/data/prepare_folder.py on folders of images and masks."""

import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.segmentation.folders import COLOURS, labels, save_image, save_mask, write_folder
from tests.tools.tiny_runs import run_tool
from wsbcn_mm.segmentation.data import prepare_folder
from wsbcn_mm.segmentation.data.prepare_folder import prepare_segmentation_folder


def prepare(root: Path, **options) -> tuple[list[str], str]:
    """Problems and what was printed."""
    printed = StringIO()
    problems = prepare_segmentation_folder(root, Console(file=printed, width=200), **options)
    return problems, printed.getvalue()


def test_what_was_found_is_said(tmp_path: Path, capsys) -> None:
    root = write_folder(tmp_path, 'floor\nroad\ncar\nsky\nignore 255\n')
    save_image(root / 'images/train/wide.png', size=(12, 20))
    save_mask(root / 'masks/train/wide.png', np.where(np.arange(20) < 5, 255, np.zeros((12, 20))).astype(np.uint8))
    (root / 'images/readme.txt').touch()
    (root / 'images/train/Thumbs.db').touch()
    with pytest.raises(SystemExit) as exit_:
        run_tool('data/prepare_folder.py', root)
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    pixels = np.bincount(np.concatenate([labels(ord(name)).ravel() for name in 'abcd']), minlength=3)
    pixels[0] += 180
    total = 4 * 12 * 16 + 12 * 20
    floor, road, car = (f'{100 * count / total:.2f}' for count in pixels)
    assert '4 classes, in the order of classes.txt\n' in printed
    assert 'train: 5 images, 5 with masks, 2 sizes from 16 x 12 to 20 x 12 pixels\n' in printed
    assert f'  pixels: floor {floor} %, road {road} %, car {car} %; ignored {6000 / total:.2f} %\n' in printed
    assert '  without a pixel: sky\n' in printed
    assert 'val: 2 images, 2 with masks, 16 x 12 pixels\n' in printed
    assert 'note: skipped, neither images nor masks: 1 .db\n' in printed
    assert printed.endswith('\ncomplete\n')
    manifest = json.loads((root / 'manifest.json').read_text())
    assert manifest['problems'] == []
    assert manifest['splits']['train']['pixels']['ignore'] == 60
    assert manifest['splits']['val']['files'][0] | dict(stamps=0) == dict(
        image='images/val/e.png', mask='masks/val/e.png', stamps=0, size=[16, 12], bits=8, unreadable=[],
        pixels={str(value): int((labels(ord('e')) == value).sum()) for value in range(3)},
    )  # fmt: skip


def test_a_folder_without_split_gets_one_that_stays(tmp_path: Path) -> None:
    names = {'': tuple('abcdefghij')}
    root = write_folder(tmp_path, layout='{kind}/{name}', names=names)
    (root / 'images/notes.txt').touch()
    problems, printed = prepare(root, seed=5)
    assert problems == []
    assert 'note: split at random with seed 5: train.txt (8), val.txt (2)\n' in printed
    assert 'note: skipped, neither images nor masks: 1 .txt\n' in printed
    lists = {split: (root / f'{split}.txt').read_text().split() for split in ('train', 'val')}
    assert sorted(lists['train'] + lists['val']) == list('abcdefghij')
    problems, printed = prepare(root)
    assert problems == []
    assert 'split at random' not in printed
    assert {split: (root / f'{split}.txt').read_text().split() for split in lists} == lists
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared
        prepare(root, seed=6)
    assert str(error.value) == (
        f'seed=6: accepted for a folder without split, and {root} has train, val ({root}/train.txt, {root}/val.txt). '
        'Remove the lists for a new split'
    )
    save_image(root / 'images/new.png')
    save_mask(root / 'masks/new.png', labels(0))
    problems, printed = prepare(root)
    assert problems == []
    assert 'note: 1 images are in no split: images/new.png\n' in printed
    assert 'note: 1 masks are in no split: masks/new.png\n' in printed


def test_an_image_without_mask_is_in_the_split_and_a_problem_each_time(tmp_path: Path) -> None:
    root = write_folder(tmp_path, layout='{kind}/{name}')
    (root / 'masks/c.png').rename(root / 'masks/cc.png')
    for _ in range(2):
        assert prepare(root)[0] == [f'images/c.png has no mask masks/c.png; nearest existing name: {root}/masks/cc.png']
    bare = tmp_path / 'bare'
    save_mask(bare / 'masks/a.png', labels(0))
    (bare / 'images').mkdir()
    (bare / 'images/a.heic').touch()
    (bare / 'classes.txt').write_text('floor\nroad\ncar\n')
    with pytest.raises(FileNotFoundError, match=r'^images has no image, but 1 .heic. Accepted: .jpg '):
        prepare(bare)


def test_images_beside_the_sub_folders(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    save_image(root / 'images/more/new.png')
    save_image(root / 'images/loose.png')
    assert prepare(root)[0] == ['2 images are in no split: images/loose.png, images/more/new.png']


def test_images_of_one_source_stay_together(tmp_path: Path) -> None:
    names = {'': tuple(f'cam{camera}_{number}' for camera in range(5) for number in range(4))}
    root = tmp_path
    for seed, name in enumerate(names['']):
        save_image(root / f'images/{name}.jpg', seed)
        save_mask(root / f'masks/{name}.png', labels(0))
    (root / 'classes.txt').write_text('floor\nroad\ncar\n')
    problems, printed = prepare(root, group_by='^(cam[0-9]+)_')
    assert problems == []
    assert "seed 0 and group_by='^(cam[0-9]+)_': train.txt (16), val.txt (4)" in printed
    cameras = {split: {name[:4] for name in (root / f'{split}.txt').read_text().split()} for split in ('train', 'val')}
    assert not cameras['train'] & cameras['val']
    first = (root / 'train.txt').read_text().split()
    (root / 'train.txt').write_text('\n'.join(first[:-1]))
    with (root / 'val.txt').open('a') as file:
        file.write(first[-1])
    assert prepare(root, group_by='^(cam[0-9]+)_')[0] == [
        f"1 sources of group_by='^(cam[0-9]+)_' are in two splits: {first[-1][:4]} (train and val)"
    ]


def test_problems_are_listed_and_end_with_1(tmp_path: Path, capsys) -> None:
    root = write_folder(tmp_path, 'floor 0 0 0\nroad 128 64 128\n', lambda label: COLOURS[label])
    (root / 'masks/val/e.png').unlink()
    (root / 'images/val/f.png').write_bytes((root / 'images/val/f.png').read_bytes()[:-40])
    save_image(root / 'images/train/a.png', size=(10, 16))
    save_mask(root / 'images/train/b.png', np.zeros((12, 16), np.uint16))
    with pytest.raises(SystemExit) as exit_:
        run_tool('data/prepare_folder.py', root)
    assert exit_.value.code == 1
    printed = capsys.readouterr().out
    wrong = [line.removeprefix('wrong: ') for line in printed.splitlines() if line.startswith('wrong: ')]
    assert wrong[:2] == [
        f'images/val/e.png has no mask masks/val/e.png; nearest existing name: {root}/masks/val/f.png',
        'images/train/a.png is 16 x 10 pixels, its mask masks/train/a.png 16 x 12',
    ]
    assert (
        'images/train/b.png has 16 bits per channel, and loading keeps the upper 8: save it with 8 bits, scaled to '
        'their range'
    ) in wrong
    assert sum(line.startswith('mask masks/') and '#dc143c' in line for line in wrong) == 5
    assert any(line.startswith(f'image {root}/images/val/f.png is damaged') for line in wrong)
    assert len(wrong) == 9
    assert 'outside classes.txt ' in printed
    assert printed.endswith('\nnot complete\n')
    assert json.loads((root / 'manifest.json').read_text())['problems'] == wrong


def test_a_second_run_reads_what_has_changed(tmp_path: Path, monkeypatch) -> None:
    root = write_folder(tmp_path)
    assert prepare(root)[0] == []
    read = []
    monkeypatch.setattr(prepare_folder, 'read_image', lambda file: read.append(file.name) or np.zeros((12, 16, 3)))
    save_image(root / 'images/val/e.png', seed=99)
    assert prepare(root)[0] == []
    assert read == ['e.png']
    (root / 'classes.txt').write_text('floor 0 0 0\nroad 1 1 1\ncar 2 2 2\n')
    prepare(root)
    assert len(read) == 1 + 6


def test_a_missing_list_of_classes_says_what_the_masks_have(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / 'classes.txt').rename(root / 'class.txt')
    with pytest.raises(FileNotFoundError) as error:
        prepare(root)
    assert str(error.value) == (
        f'{root}/classes.txt does not exist; nearest existing name: {root}/class.txt. It has a line for each class, '
        '"name", "name value" or "name #rrggbb", and "ignore value" for what does not count. 6 masks have the values '
        '0, 1, 2'
    )
    shutil.rmtree(root / 'masks')
    root = write_folder(root, draw=lambda label: COLOURS[label])
    (root / 'classes.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'6 masks have the colours #000000, #804080, #dc143c$'):
        prepare(root)


def test_images_in_two_splits_and_splits_that_are_missing(tmp_path: Path) -> None:
    root = write_folder(tmp_path, layout='{kind}/{name}')
    (root / 'train.txt').write_text('a\nb\nc\ne\n')
    (root / 'val.txt').write_text('e\nf\nd\n')
    assert prepare(root)[0] == ['1 images are in two splits: images/e.png (train and val)']
    shutil.copy(root / 'images/a.png', root / 'images/f.png')
    _, printed = prepare(root)
    assert 'note: 1 images have the same content in two splits: images/a.png = images/f.png\n' in printed
    (root / 'val.txt').unlink()
    assert prepare(root)[0][0] == (
        f'{root} has no split val: make it beside train, or remove the split to have one made'
    )
