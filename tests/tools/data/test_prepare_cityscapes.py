"""tools/data/prepare_cityscapes.py on small trees and archives of the real shape."""

import json
import shutil
import zipfile
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.segmentation.small_trees import SIZE, cityscapes_tree, label_ids
from tests.tools.tiny_runs import run_tool
from wsbcn_mm.segmentation.data.prepare_cityscapes import ARCHIVES, PUBLISHED, prepare_cityscapes

PAIRS = {'train': 4, 'val': 2, 'test': 2}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    assert cityscapes_tree(tmp_path / 'cityscapes') == PAIRS
    return tmp_path / 'cityscapes'


def prepare(root: Path, published: dict | None = None) -> tuple[list[str], str]:
    """Return the problems and the printed text."""
    printed = StringIO()
    return prepare_cityscapes(root, Console(file=printed), published or PAIRS), printed.getvalue()


def pack(tree: Path) -> None:
    for folder, archive in ARCHIVES.items():
        with zipfile.ZipFile(tree / archive, 'w') as target:
            for file in sorted((tree / folder).rglob('*.png')):
                target.write(file, file.relative_to(tree))
        shutil.rmtree(tree / folder)


def test_the_manifest_has_files_sizes_values_and_counts(tree: Path) -> None:
    problems, printed = prepare(tree)
    assert problems == []
    assert 'train: 4 of 4 samples' in printed
    manifest = json.loads((tree / 'manifest.json').read_text())
    train = manifest['splits']['train']
    assert {split: found['samples'] for split, found in manifest['splits'].items()} == PAIRS
    first = train['files'][0]
    assert first['image'] == 'leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png'
    assert first['label'] == 'gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png'
    assert first['size'] == first['label_size'] == list(SIZE[::-1])
    assert [size for size, _ in first['stamps']] == [(tree / first[kind]).stat().st_size for kind in ('image', 'label')]
    counts = sum(np.bincount(label_ids(seed).ravel(), minlength=34) for seed in (0, 1)) * 2
    assert train['pixels'] == {str(value): count for value, count in enumerate(counts.tolist())}
    assert manifest['splits']['test']['pixels'] == {}


def test_archives_are_unpacked_once_and_a_second_run_changes_nothing(tree: Path) -> None:
    pack(tree)
    assert prepare(tree)[0] == []
    images = sorted(tree.rglob('*_leftImg8bit.png'))
    assert len(images) == 8
    before = {path: path.stat().st_mtime_ns for path in tree.rglob('*')}
    assert prepare(tree)[0] == []
    assert {path: path.stat().st_mtime_ns for path in tree.rglob('*')} == before
    images[0].write_bytes(b'half of i')
    assert prepare(tree)[0] == []
    assert Image.open(images[0]).size == SIZE[::-1]


def test_missing_and_damaged_archives_are_named(tree: Path) -> None:
    pack(tree)
    (tree / 'gtFine_trainvaltest.zip').unlink()
    (tree / 'gtFine_trainval').mkdir()
    with pytest.raises(FileNotFoundError) as error:
        prepare(tree)
    assert str(error.value) == (
        f'missing: {tree}/gtFine/ or {tree}/gtFine_trainvaltest.zip; nearest existing name: {tree}/gtFine_trainval. '
        'Download leftImg8bit_trainvaltest.zip and '
        f'gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com/downloads into {tree}'
    )
    (tree / 'gtFine_trainvaltest.zip').write_bytes(b'<html>log in first</html>')
    with pytest.raises(ValueError, match=r'gtFine_trainvaltest.zip is neither a zip nor a tar archive: the d'):
        prepare(tree)
    with zipfile.ZipFile(tree / 'gtFine_trainvaltest.zip', 'w') as archive:
        archive.writestr('gtFine/../../secret.png', b'')
    with pytest.raises(
        ValueError, match=r"has the member 'gtFine/../../secret.png', which is outside the target folder"
    ):
        prepare(tree)
    assert not (tree.parent / 'secret.png').exists()


def test_everything_wrong_is_listed_and_in_the_manifest(tree: Path) -> None:
    labels = sorted((tree / 'gtFine').glob('train/*/*labelIds.png'))
    raw = np.asarray(Image.open(labels[0])).copy()
    raw[3, :5] = 77
    Image.fromarray(raw).save(labels[0])
    shutil.copy(str(labels[1]).replace('labelIds', 'color'), labels[1])
    Image.fromarray(raw[:6] % 34).save(labels[2])
    labels[3].write_bytes(b'')
    half = tree / 'leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png'
    half.write_bytes(half.read_bytes()[:400])
    problems, printed = prepare(tree, PUBLISHED)
    assert problems[0] == 'train: 4 samples, 2975 are published'
    assert problems[1].startswith(f'label file {labels[0]} has values outside the label map: 77 (5 pixels). Classes')
    assert problems[2].startswith(f'label file {labels[1]} is an image of mode RGB')
    image = 'leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png'
    assert problems[3] == f'image {image} is 24 x 12 pixels, its label file 24 x 6'
    assert problems[4].startswith(f'label file {labels[3]} cannot be read: ')
    assert problems[5] == 'val: 2 samples, 500 are published'
    assert problems[6].startswith(f'image {half} is damaged: ')
    assert problems[7:] == ['test: 2 samples, 1525 are published']
    assert json.loads((tree / 'manifest.json').read_text())['problems'] == problems
    assert all(f'wrong: {line}' in printed for line in problems)


def test_the_tool_reports_and_exits_with_1(tree: Path, capsys) -> None:
    for expected in ('wrong: train: 4 samples, 2975 are published\n', 'FileNotFoundError: found 4 images with suffix '):
        with pytest.raises(SystemExit, match=r'^1$'):
            run_tool('data/prepare_cityscapes.py', tree)
        assert expected in capsys.readouterr().out
        next(tree.glob('gtFine/train/aachen/*labelIds.png')).unlink()
