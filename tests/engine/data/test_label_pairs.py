"""Pairs and labels of any data set are checked before training, in the words of its own arguments."""

import copy
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

import wsbcn_mm.segmentation  # noqa: F401
from tests.segmentation.folders import COLOURS, labels, save_image, save_mask
from wsbcn_mm.engine.data import label_pairs
from wsbcn_mm.engine.data.label_pairs import SWITCH, check_label_pairs

LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """A recipe on mmseg's own data set: three images to train, two to validate."""
    for split, names in (('train', 'abc'), ('val', 'de')):
        for name in names:
            save_image(tmp_path / f'img/{split}/{name}.png', ord(name))
            save_mask(tmp_path / f'ann/{split}/{name}.png', labels(ord(name)))
    data = dict(
        type='BaseSegDataset', img_suffix='.png', seg_map_suffix='.png', data_root=str(tmp_path), pipeline=LOAD,
        metainfo=dict(classes=('floor', 'road', 'car'), palette=COLOURS.tolist()),
    )  # fmt: skip
    loaders = {
        f'{split}_dataloader': dict(
            dataset=copy.deepcopy(data) | dict(data_prefix=dict(img_path=f'img/{split}', seg_map_path=f'ann/{split}'))
        )
        for split in ('train', 'val')
    }
    return Config(dict(default_scope='mmseg', model=dict(decode_head=dict(ignore_index=255)), **loaders))


def error_of(cfg: Config, *loaders: str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        check_label_pairs(cfg, *([loaders] if loaders else []))
    return str(error.value)


def test_what_fits_passes(cfg: Config) -> None:
    check_label_pairs(cfg)
    whole = copy.deepcopy(cfg)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=whole.train_dataloader.dataset)
    check_label_pairs(cfg)
    assert whole.val_dataloader == cfg.val_dataloader
    check_label_pairs(Config(dict(default_scope='mmengine', train_dataloader=dict(dataset=dict(type='no such set')))))


@pytest.mark.parametrize('loader', ['train', 'val'])
def test_a_missing_mask(cfg: Config, tmp_path: Path, loader: str) -> None:
    name = 'b' if loader == 'train' else 'e'
    (tmp_path / f'ann/{loader}/{name}.png').rename(tmp_path / f'ann/{loader}/{name}1.png')
    total = 3 if loader == 'train' else 2
    folder = f'{tmp_path}/ann/{loader}'
    assert error_of(cfg) == (
        f"{loader}_dataloader.dataset.seg_map_suffix='.png': 1 of {total} files do not exist: {folder}/{name}.png; "
        f'nearest existing name: {folder}/{name}1.png. {SWITCH}'
    )
    cfg.check_pairs = False
    check_label_pairs(cfg)


def test_a_missing_mask_that_no_step_reads(cfg: Config, tmp_path: Path) -> None:
    (tmp_path / 'ann/val/e.png').unlink()
    cfg.val_dataloader.dataset.pipeline = [step for step in LOAD if step['type'] != 'LoadAnnotations']
    check_label_pairs(cfg)


def test_a_suffix_that_no_image_has(cfg: Config, tmp_path: Path) -> None:
    cfg.train_dataloader.dataset.img_suffix = '.jpg'
    assert (
        error_of(cfg)
        == f"train_dataloader.dataset.img_suffix='.jpg': {tmp_path}/img/train has no such file, but 3 .png"
    )
    cfg.train_dataloader.dataset.data_prefix.img_path = 'img/trian'
    assert error_of(cfg) == f'{tmp_path}/img/trian does not exist; nearest existing name: {tmp_path}/img/train'


def test_lists(cfg: Config, tmp_path: Path) -> None:
    (tmp_path / 'list.txt').write_text('a\nf\n')
    cfg.train_dataloader.dataset.ann_file = 'list.txt'
    assert error_of(cfg).startswith(
        f"train_dataloader.dataset.img_suffix='.png': 1 of 2 files do not exist: {tmp_path}/img/train/f.png; nearest"
    )
    cfg.train_dataloader.dataset.ann_file = 'lst.txt'
    assert error_of(cfg) == f'{tmp_path}/lst.txt does not exist; nearest existing name: {tmp_path}/list.txt'


def test_another_size(cfg: Config, tmp_path: Path) -> None:
    save_mask(tmp_path / 'ann/val/e.png', labels(0)[:-1])
    assert error_of(cfg) == (
        'val_dataloader.dataset: 1 masks have another size than their images: '
        f'{tmp_path}/img/val/e.png is 16 x 12 pixels, {tmp_path}/ann/val/e.png 16 x 11. {SWITCH}'
    )


def test_values_that_are_no_class(cfg: Config, tmp_path: Path) -> None:
    cfg.train_dataloader.dataset.metainfo.classes = ('floor', 'road')
    cfg.train_dataloader.dataset.metainfo.palette = COLOURS[:2].tolist()
    assert error_of(cfg) == (
        f'train_dataloader.dataset: masks have the values 2 (54 pixels, as in {tmp_path}/ann/train/a.png): 0 to 1 (2 '
        'classes) and 255 (ignored) are accepted. LoadStrictLabels in place of LoadAnnotations maps values to classes: '
        'docs/own_images.md'
    )
    cfg.model.decode_head.ignore_index = 2
    check_label_pairs(cfg)
    cfg.model.decode_head.ignore_index = 255
    cfg.train_dataloader.dataset.reduce_zero_label = True
    check_label_pairs(cfg)


def test_masks_of_0_and_255_train_nothing(cfg: Config, tmp_path: Path) -> None:
    for name in 'abc':
        save_mask(tmp_path / f'ann/train/{name}.png', (labels(0) > 0).astype(np.uint8) * 255)
    cfg.train_dataloader.dataset.metainfo = dict(classes=('floor', 'crack'), palette=COLOURS[:2].tolist())
    assert error_of(cfg) == (
        'train_dataloader.dataset: all 3 masks looked at have the values 0 and 255 only, and 255 is ignored, so '
        "'crack' has no pixel. LoadStrictLabels in place of LoadAnnotations maps values to classes: "
        'docs/own_images.md, with label_map={0: 0, 255: 1}'
    )


def test_masks_of_colours(cfg: Config, tmp_path: Path) -> None:
    save_mask(tmp_path / 'ann/train/a.png', COLOURS[labels(0)])
    assert error_of(cfg) == (
        f'train_dataloader.dataset: mask {tmp_path}/ann/train/a.png has the shape (12, 16, 3): (height, width) is '
        'accepted, one label per pixel. tools/data/convert_masks.py makes such masks of colours'
    )
    (tmp_path / 'ann/train/a.png').write_bytes(b'none')
    assert error_of(cfg).startswith(f'train_dataloader.dataset: mask {tmp_path}/ann/train/a.png cannot be read: ')


def test_of_many_masks_some_are_read(cfg: Config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(label_pairs, 'MASKS_READ', 2)
    save_mask(tmp_path / 'ann/train/b.png', np.full((12, 16), 9, np.uint8))
    check_label_pairs(cfg)
    save_mask(tmp_path / 'ann/train/c.png', np.full((12, 16), 9, np.uint8))
    assert 'the values 9 (192 pixels, as in ' in error_of(cfg)


def test_the_loader_that_is_asked_for(cfg: Config, tmp_path: Path) -> None:
    (tmp_path / 'ann/val/e.png').unlink()
    check_label_pairs(cfg, ('train_dataloader',))
    assert error_of(cfg, 'val_dataloader').startswith('val_dataloader.dataset.seg_map_suffix')
