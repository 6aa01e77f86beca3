"""tools/data/prepare_voc.py on small trees and archives of the real shape."""

import json
import shutil
import tarfile
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image
from rich.console import Console

from tests.segmentation.small_trees import voc_label, voc_tree
from tests.tools.tiny_runs import run_tool
from wsbcn_mm.segmentation.data.prepare_voc import PUBLISHED, SBD_ARCHIVE, VOC_ARCHIVE, prepare_voc

PAIRS = {'train': 1, 'val': 2, 'aug': 2}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    assert voc_tree(tmp_path) == PAIRS
    return tmp_path


def voc(tree: Path) -> Path:
    return tree / 'VOCdevkit' / 'VOC2012'


def prepare(root: Path, published: dict | None = None) -> tuple[list[str], str]:
    """Return the problems and the printed text."""
    printed = StringIO()
    return prepare_voc(root, Console(file=printed), published or PAIRS), printed.getvalue()


def pack(tree: Path) -> None:
    for folder, archive, kind in (('VOCdevkit', VOC_ARCHIVE, ''), ('benchmark_RELEASE', SBD_ARCHIVE, 'gz')):
        with tarfile.open(tree / archive, f'w:{kind}') as target:
            target.add(tree / folder, folder)
        shutil.rmtree(tree / folder)


def test_published_counts_add_up() -> None:
    assert PUBLISHED['train'] + PUBLISHED['val'] == 2913
    assert PUBLISHED['train'] + PUBLISHED['aug'] == 10582


def test_sbd_becomes_palette_files_that_the_dataset_reads(tree: Path) -> None:
    problems, printed = prepare(tree)
    assert problems == []
    assert 'trainval 3, train_aug 3' in printed
    names = (voc(tree) / 'ImageSets/Segmentation/aug.txt').read_text().split()
    assert names == ['2008_000002', '2009_000001']
    picture = Image.open(voc(tree) / 'SegmentationClassAug/2008_000002.png')
    assert picture.mode == 'P'
    assert np.array_equal(np.asarray(picture), voc_label(0))
    assert picture.convert('RGB').getpixel((6, 6)) == (0, 64, 128)
    manifest = json.loads((voc(tree) / 'manifest.json').read_text())
    assert manifest['splits']['val']['pixels'].keys() == {'0', '20', '255'}
    assert manifest['splits']['aug']['pixels'].keys() == {'0', '20'}
    init_default_scope('mmseg')
    dataset = DATASETS.build(
        dict(
            type='StrictVOCDataset',
            data_root=str(voc(tree)),
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug'),
            ann_file='ImageSets/Segmentation/aug.txt',
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadStrictLabels'), dict(type='PackSegInputs')],
        )
    )
    assert len(dataset) == 2
    assert np.array_equal(dataset[1]['data_samples'].gt_sem_seg.data[0], voc_label(0))


def test_archives_are_unpacked_once_and_sbd_is_not_needed_again(tree: Path) -> None:
    pack(tree)
    assert prepare(tree)[0] == []
    manifest = (voc(tree) / 'manifest.json').read_text()
    before = {path: path.stat().st_mtime_ns for path in tree.rglob('*')}
    assert prepare(tree)[0] == []
    assert {path: path.stat().st_mtime_ns for path in tree.rglob('*')} == before
    (tree / SBD_ARCHIVE).unlink()
    shutil.rmtree(tree / 'benchmark_RELEASE')
    assert prepare(tree)[0] == []
    assert (voc(tree) / 'manifest.json').read_text() == manifest


def test_missing_pieces_are_named_with_their_places(tree: Path) -> None:
    shutil.move(tree / 'benchmark_RELEASE', tree / 'benchmark/elsewhere')
    with pytest.raises(FileNotFoundError) as error:
        prepare(tree)
    assert str(error.value) == (
        f'missing: {tree}/benchmark_RELEASE/dataset/ or {tree}/benchmark.tgz, '
        'from http://home.bharathh.info/pubs/codes/SBD/download.html, or the files made from it: '
        f'{voc(tree)}/ImageSets/Segmentation/aug.txt and {voc(tree)}/SegmentationClassAug; '
        f'nearest existing name: {tree}/benchmark'
    )
    (voc(tree) / 'SegmentationClassAug').mkdir()
    with pytest.raises(FileNotFoundError, match=r'the files made from it: [^ ]*/aug.txt; nearest existing name: '):
        prepare(tree)
    shutil.move(tree / 'benchmark/elsewhere', tree / 'benchmark_RELEASE')
    labels = tree / 'benchmark_RELEASE' / 'dataset' / 'cls'
    (labels / '2008_000002.mat').unlink()
    with pytest.raises(FileNotFoundError, match=r"^SBD's lists name 2 label files; missing: .*/2008_000002.mat; "):
        prepare(tree)
    (labels / '2008_000002.mat').write_bytes(b'no matlab')
    with pytest.raises(ValueError, match=r'2008_000002.mat is not an SBD label file with GTcls.Segmentation'):
        prepare(tree)
    (voc(tree) / 'ImageSets/Segmentation/val.txt').rename(voc(tree) / 'ImageSets/Segmentation/valid.txt')
    with pytest.raises(FileNotFoundError, match=r'/val.txt does not exist; nearest existing name: .*/valid.txt$'):
        prepare(tree)


def test_labels_made_elsewhere_are_read_and_must_not_hold_validation_images(tree: Path) -> None:
    shutil.rmtree(tree / 'benchmark_RELEASE')
    labels = voc(tree) / 'SegmentationClassAug'
    labels.mkdir()
    for name in ('2007_000039', '2009_000001'):
        Image.fromarray(voc_label(0)).save(labels / f'{name}.png')
    (voc(tree) / 'ImageSets/Segmentation/aug.txt').write_text('2009_000001\n2007_000039\n')
    problem = '1 images are in two splits: JPEGImages/2007_000039.jpg (val and aug)'
    assert prepare(tree)[0] == [problem]
    assert json.loads((voc(tree) / 'manifest.json').read_text())['problems'] == [problem]


def test_sbd_is_found_where_mmsegmentations_guide_puts_it(tree: Path) -> None:
    shutil.move(tree / 'benchmark_RELEASE', tree / 'VOCdevkit/VOCaug')
    assert prepare(tree)[0] == []
    assert len(list((voc(tree) / 'SegmentationClassAug').iterdir())) == 2


def test_a_truncated_archive_is_named(tree: Path) -> None:
    pack(tree)
    content = (tree / SBD_ARCHIVE).read_bytes()
    (tree / SBD_ARCHIVE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r'benchmark.tgz is damaged \(.*\): the download may be incomplete$'):
        prepare(tree)


def test_rgb_masks_are_listed_by_the_tool(tree: Path, capsys) -> None:
    label = voc(tree) / 'SegmentationClass' / '2007_000032.png'
    Image.open(label).convert('RGB').save(label)
    with pytest.raises(SystemExit, match=r'^1$'):
        run_tool('data/prepare_voc.py', tree)
    printed = capsys.readouterr().out
    assert 'wrong: train: 1 samples, 1464 are published\n' in printed
    assert f'wrong: label file {label} is an image of mode RGB: one 8-bit label per pixel is expected' in printed
