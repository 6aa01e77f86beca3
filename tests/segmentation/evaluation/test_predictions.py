"""Predictions as label files: in the values that a server accepts, one per image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, METRICS
from PIL import Image

import wsbcn_mm.segmentation  # noqa: F401
from tests.segmentation.small_trees import cityscapes_tree
from wsbcn_mm.segmentation.data.cityscapes import LABEL_IDS, LABEL_MAPS
from wsbcn_mm.segmentation.data.label_map import map_labels, read_label_file
from wsbcn_mm.segmentation.evaluation.predictions import save_predictions_only

RECIPE = 'deeplabv3/deeplabv3_r50-d8_bcn-ws_1xb1-acc8-80k_cityscapes-512x1024.py'


def metric(folder: Path, **meta):
    built = METRICS.build(dict(type='SavePredictions', out_dir=str(folder)))
    built.dataset_meta = dict(classes=[str(index) for index in range(19)]) | meta
    return built


def sample(prediction: np.ndarray, image: str) -> dict:
    return dict(pred_sem_seg=dict(data=torch.from_numpy(prediction)[None]), img_path=image)


def test_cityscapes_predictions_are_label_ids_and_come_back_unchanged(tmp_path: Path) -> None:
    saving = metric(tmp_path / 'out', label_ids=LABEL_IDS)
    predictions = {name: np.random.default_rng(seed).permutation(19).reshape(1, 19) for seed, name in enumerate('ab')}
    for name, prediction in predictions.items():
        saving.process({}, [sample(prediction, f'test/{name}_leftImg8bit.png')])
    assert saving.evaluate(size=2) == dict(saved=2)
    assert len(list((tmp_path / 'out').iterdir())) == 2
    for name, prediction in predictions.items():
        raw = read_label_file(tmp_path / 'out' / f'{name}_leftImg8bit.png')
        assert raw.tolist() == [[LABEL_IDS[index] for index in prediction[0]]]
        assert np.array_equal(map_labels(raw, LABEL_MAPS['labelIds'], name), prediction)


def test_without_label_ids_the_classes_are_written(tmp_path: Path) -> None:
    saving = metric(tmp_path)
    saving.process({}, [sample(np.array([[0, 18]]), 'a.jpg')])
    assert np.asarray(Image.open(tmp_path / 'a.png')).tolist() == [[0, 18]]


def test_scores_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    broken = sample(np.array([[0, 0]]), 'a.jpg') | dict(seg_logits=dict(data=torch.full((19, 1, 2), torch.nan)))
    with pytest.raises(ValueError, match=r'^the scores of the prediction for a.jpg are not all finite'):
        metric(tmp_path).process({}, [broken])
    assert not list(tmp_path.iterdir())


def test_two_images_of_one_name_and_values_that_are_not_classes(tmp_path: Path) -> None:
    saving = metric(tmp_path)
    with pytest.raises(ValueError, match=r'a.png has values outside the label map: 19 \(1 pixels\)'):
        saving.process({}, [sample(np.array([[0, 19]]), 'a.jpg')])
    for image in ('one/a.jpg', 'two/a.jpg'):
        saving.process({}, [sample(np.array([[0]]), image)])
    with pytest.raises(ValueError, match=r'both written') as error:
        saving.evaluate(size=2)
    assert str(error.value) == (
        f'one/a.jpg and two/a.jpg were both written to {tmp_path}/a.png: give them different names'
    )


def test_a_recipe_that_only_writes_loads_no_labels(tmp_path: Path) -> None:
    cityscapes_tree(tmp_path)
    cfg = Config.fromfile(Path(__file__).parents[3] / 'configs' / RECIPE)
    dataset = 'test_dataloader.dataset'
    cfg.merge_from_dict({f'{dataset}.split': 'test', f'{dataset}.data_root': str(tmp_path)})
    save_predictions_only(cfg, str(tmp_path))
    assert [step['type'] for step in cfg.test_dataloader.dataset.pipeline] == [
        'LoadImageFromFile',
        'Resize',
        'PackSegInputs',
    ]
    assert cfg.test_evaluator == dict(type='SavePredictions', out_dir=str(tmp_path))
    init_default_scope('mmseg')
    images = DATASETS.build(cfg.test_dataloader.dataset)
    assert [Path(images[index]['data_samples'].img_path).name for index in range(len(images))] == [
        'berlin_000000_000019_leftImg8bit.png',
        'berlin_000001_000019_leftImg8bit.png',
    ]
    assert images.metainfo['label_ids'] == LABEL_IDS
