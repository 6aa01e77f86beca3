import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.registry import METRICS

import wsbcn_mm.segmentation  # noqa: F401

CLASSES = ('road', 'car', 'sky', 'bus')


def metric(**kwargs):
    built = METRICS.build(dict(type='StrictIoUMetric', iou_metrics=['mIoU'], **kwargs))
    built.dataset_meta = dict(classes=CLASSES)
    return built


def sample(label: np.ndarray, prediction: np.ndarray) -> dict:
    return dict(
        gt_sem_seg=dict(data=torch.from_numpy(label)[None]),
        pred_sem_seg=dict(data=torch.from_numpy(prediction)[None]),
        seg_map_path='gtFine/val/a_labelIds.png',
    )


def test_equals_brute_force_over_images_with_ignored_pixels_and_absent_classes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 3, 255], (3, 16, 20))
    predictions = np.where(rng.random(labels.shape) < 0.6, labels % 255, rng.choice([0, 1], labels.shape))
    iou = metric()
    for label, prediction in zip(labels, predictions, strict=True):
        iou.process({}, [sample(label, prediction)])
    result = iou.compute_metrics(iou.results)

    counted = labels != 255
    expected = []
    for index in range(len(CLASSES)):
        union = counted & ((labels == index) | (predictions == index))
        if union.any():
            expected.append((union & (labels == predictions)).sum() / union.sum())
    assert len(expected) == 3
    assert result['mIoU'] == pytest.approx(100 * np.mean(expected), abs=0.01)


@pytest.mark.parametrize('value', [4, 33, -1])
def test_label_outside_the_classes_names_file_and_value(value: int) -> None:
    label = np.zeros((4, 4), np.int64)
    label[0, 0] = value
    label[1, 1] = 255
    with pytest.raises(ValueError, match=r'label map$') as error:
        metric().process({}, [sample(label, label)])
    assert str(error.value) == (
        f'labels of gtFine/val/a_labelIds.png have the values {value} (1 pixels): 0 to 3 (4 classes) and 255 (ignored) '
        'are accepted. Load them with LoadStrictLabels and a label map'
    )


def test_log_says_how_many_classes_were_averaged(caplog: pytest.LogCaptureFixture) -> None:
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    iou = metric()
    label = np.array([[0, 1], [1, 3]])
    iou.process({}, [sample(label, label)])
    assert iou.compute_metrics(iou.results)['mIoU'] == 100
    logger.removeHandler(caplog.handler)
    assert 'averaged over 3/4 classes; in neither labels nor predictions: sky' in caplog.text
    assert 'road' in caplog.text


def test_format_only_needs_no_labels(tmp_path) -> None:
    iou = metric(format_only=True, output_dir=str(tmp_path))
    prediction = torch.ones(1, 4, 4, dtype=torch.int64)
    iou.process({}, [dict(pred_sem_seg=dict(data=prediction), img_path='a.png')])
    assert iou.compute_metrics(iou.results) == {}
    assert (tmp_path / 'a.png').is_file()
