"""The dataset bases read real JPEG and PNG files in the folders of the real datasets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import METRICS, MODELS
from PIL import Image

import wsbcn_mm.segmentation  # noqa: F401

DATASETS = Path(__file__).parents[3] / 'configs' / '_base_' / 'datasets'
VOC_SIZES = {'2007_000032': (60, 90), '2007_000039': (90, 60), '2008_000002': (70, 80)}


def save_palette_png(label: np.ndarray, file: Path) -> None:
    picture = Image.fromarray(label, mode='P')
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tolist())
    picture.save(file)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two VOC images, the second for validation, and one of SBD; borders and unlabelled pixels are 255."""
    rng = np.random.default_rng(0)
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'):
        (tmp_path / folder).mkdir(parents=True)
    for name, size in VOC_SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f'JPEGImages/{name}.jpg')
        label = np.full(size, 255, np.uint8)
        label[5:-5, 5:-5] = 0
        label[10:30, 10:40] = 20
        folder = 'SegmentationClassAug' if name.startswith('2008') else 'SegmentationClass'
        save_palette_png(label, tmp_path / folder / f'{name}.png')
    for split, names in dict(train='2007_000032', val='2007_000039', aug='2008_000002').items():
        (tmp_path / f'ImageSets/Segmentation/{split}.txt').write_text(names + '\n')
    return tmp_path


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        image = tmp_path / 'leftImg8bit' / split / 'aachen'
        label = tmp_path / 'gtFine' / split / 'aachen'
        image.mkdir(parents=True)
        label.mkdir(parents=True)
        pixels = rng.integers(0, 256, (1024, 2048, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image / 'aachen_000000_000019_leftImg8bit.png', compress_level=0)
        label_ids = np.repeat(rng.choice([7, 20, 33, 3], (1, 2048)).astype(np.uint8), 1024, axis=0)
        Image.fromarray(label_ids).save(label / 'aachen_000000_000019_gtFine_labelIds.png')
    return tmp_path


def loader(base: str, split: str, root: Path) -> torch.utils.data.DataLoader:
    init_default_scope('mmseg')
    cfg = Config.fromfile(DATASETS / f'{base}.py')[f'{split}_dataloader']
    cfg.update(num_workers=0, persistent_workers=False)
    for dataset in cfg.dataset.get('datasets', [cfg.dataset]):
        dataset.data_root = str(root)
    return Runner.build_dataloader(cfg, seed=0)


def preprocess(batch: dict, size: tuple[int, int], training: bool) -> dict:
    preprocessor = MODELS.build(
        dict(
            type='SegDataPreProcessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            size=size,
            test_cfg=dict(size=size),
        )
    )
    return preprocessor(batch, training)


def test_voc_training_joins_voc_and_sbd_and_pads_behind_the_normalisation(voc: Path) -> None:
    batches = loader('voc12aug-513x513', 'train', voc)
    assert len(batches.dataset) == 2
    files = set()
    for _, batch in zip(range(4), batches, strict=False):
        out = preprocess(batch, (513, 513), training=True)
        (sample,) = out['data_samples']
        files.add(Path(sample.img_path).stem)
        height, width = sample.img_shape[:2]
        label = sample.gt_sem_seg.data[0]
        assert out['inputs'].shape == (1, 3, 513, 513)
        assert 0.5 <= height / VOC_SIZES[Path(sample.img_path).stem][0] <= 2.0
        assert set(label.unique().tolist()) == {0, 20, 255}
        assert torch.all(out['inputs'][0, :, height:] == 0)
        assert torch.all(out['inputs'][0, :, :, width:] == 0)
        assert torch.all(label[height:] == 255)
        assert torch.all(label[:, width:] == 255)
    assert files == {'2007_000032', '2008_000002'}


def test_labels_are_not_stretched_over_an_image_of_another_size(voc: Path) -> None:
    for folder, name in (('SegmentationClass', '2007_000032'), ('SegmentationClassAug', '2008_000002')):
        save_palette_png(np.zeros((50, 90), np.uint8), voc / folder / f'{name}.png')
    with pytest.raises(ValueError, match=r'\.jpg is (90 x 60|80 x 70) pixels, its label file .*\.png 90 x 50$'):
        next(iter(loader('voc12aug-513x513', 'train', voc)))


def test_voc_validation_keeps_the_size_and_scores_it(voc: Path) -> None:
    (batch,) = loader('voc12aug-513x513', 'val', voc)
    out = preprocess(batch, (513, 513), training=False)
    (sample,) = out['data_samples']
    assert out['inputs'].shape == (1, 3, 513, 513)
    assert sample.ori_shape == (90, 60)
    assert sample.gt_sem_seg.data.shape == (1, 90, 60)
    metric = METRICS.build(Config.fromfile(DATASETS / 'voc12aug-513x513.py').val_evaluator)
    metric.dataset_meta = dict(classes=[str(i) for i in range(21)])
    label = sample.gt_sem_seg.data
    metric.process({}, [sample.to_dict() | dict(pred_sem_seg=dict(data=label.where(label != 255, 0)))])
    assert metric.evaluate(1)['mIoU'] == 100


@pytest.mark.parametrize('crop', [(512, 1024), (769, 769)])
def test_cityscapes_crops_and_labels(cityscapes: Path, crop: tuple[int, int]) -> None:
    base = 'cityscapes' if crop == (512, 1024) else 'cityscapes-769x769'
    batch = next(iter(loader(base, 'train', cityscapes)))
    out = preprocess(batch, crop, training=True)
    (sample,) = out['data_samples']
    assert out['inputs'].shape == (1, 3, *crop)
    assert set(sample.gt_sem_seg.data.unique().tolist()) <= {0, 7, 18, 255}
    (batch,) = loader(base, 'val', cityscapes)
    assert batch['data_samples'][0].gt_sem_seg.data.shape == (1, 1024, 2048)
    assert batch['inputs'][0].shape[1:] == ((1024, 2048) if crop[1] == 1024 else (1025, 2049))
