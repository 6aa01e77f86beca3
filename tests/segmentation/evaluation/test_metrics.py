import csv
import re
import warnings

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.registry import METRICS
from PIL import Image
from scipy.ndimage import binary_erosion
from sklearn.metrics import confusion_matrix, fbeta_score, jaccard_score, precision_score, recall_score

import wsbcn_mm.segmentation  # noqa: F401
from wsbcn_mm.segmentation.evaluation.boundary import boundary_distance, boundary_region
from wsbcn_mm.segmentation.evaluation.metrics import require_finite

CLASSES = ('road', 'car', 'sky', 'bus')
ALL = ['mIoU', 'mDice', 'mFscore']


def metric(**kwargs):
    built = METRICS.build(dict(type='StrictIoUMetric', **dict(iou_metrics=ALL) | kwargs))
    built.dataset_meta = dict(classes=CLASSES)
    return built


def sample(label: np.ndarray, prediction: np.ndarray, name: str = 'a') -> dict:
    return dict(
        gt_sem_seg=dict(data=torch.from_numpy(label)[None]),
        pred_sem_seg=dict(data=torch.from_numpy(prediction)[None]),
        img_path=f'leftImg8bit/val/{name}.png',
        seg_map_path='gtFine/val/a_labelIds.png',
    )


def scenes(images: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels in blocks with ignored pixels and without class 2, and mostly correct predictions."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 3, 255], (images, 6, 8)).repeat(5, 1).repeat(5, 2)
    predictions = np.where(rng.random(labels.shape) < 0.8, labels % 255, rng.choice([0, 1], labels.shape))
    return labels, predictions


def boundary_of(mask: np.ndarray, distance: int) -> np.ndarray:
    """The boundary region of Cheng et al.: a mask minus its iterated erosion by a 3x3 square, with 0 outside."""
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_equals_scikit_learn_and_scipy_over_images_with_ignored_pixels_and_absent_classes() -> None:
    labels, predictions = scenes()
    iou = metric(boundary_ratio=0.05, beta=2)
    for number, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        iou.process({}, [sample(label, prediction, str(number))])
    result = iou.evaluate(3)

    counted = labels != 255
    truth, predicted = labels[counted], predictions[counted]
    present = [0, 1, 3]
    average = dict(labels=present, average='macro')
    assert result['aAcc'] == pytest.approx(100 * np.mean(truth == predicted))
    assert result['mIoU'] == pytest.approx(100 * jaccard_score(truth, predicted, **average))
    assert result['mAcc'] == result['mRecall'] == pytest.approx(100 * recall_score(truth, predicted, **average))
    assert result['mPrecision'] == pytest.approx(100 * precision_score(truth, predicted, **average))
    assert result['mFscore'] == pytest.approx(100 * fbeta_score(truth, predicted, beta=2, **average))
    assert result['mDice'] == pytest.approx(100 * fbeta_score(truth, predicted, beta=1, **average))

    distance = boundary_distance((30, 40), 0.05)
    assert distance == round(0.05 * 50) == 2
    scores = []
    for index in present:
        regions = [
            (boundary_of((label == index), distance), boundary_of((prediction == index) & valid, distance))
            for label, prediction, valid in zip(labels, predictions, counted, strict=True)
        ]
        both, either = (sum(f(a, b).sum() for a, b in regions) for f in (np.logical_and, np.logical_or))
        scores.append(both / either)
    assert result['mBoundaryIoU'] == pytest.approx(100 * np.mean(scores))
    assert 5 < result['mBoundaryIoU'] < result['mIoU'] < 100


@pytest.mark.parametrize('distance', [1, 2, 5, 40])
@pytest.mark.parametrize('shape', [(1, 1), (3, 17), (30, 24), (64, 64)])
def test_boundary_region_is_the_mask_without_its_erosion(shape: tuple[int, int], distance: int) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    coarse = torch.randint(3, (shape[0] // 9 + 1, shape[1] // 9 + 1), generator=generator)
    labels = coarse.repeat_interleave(9, 0).repeat_interleave(9, 1)[: shape[0], : shape[1]]
    expected = sum(boundary_of(labels.numpy() == index, distance) for index in range(3))
    assert np.array_equal(boundary_region(labels, distance), expected)


def test_a_perfect_prediction_has_exactly_100_whatever_it_is_at_ignored_pixels(log) -> None:
    labels, _ = scenes(7)
    iou = metric()
    rng = np.random.default_rng(1)
    for number, label in enumerate(labels):
        prediction = np.where(label == 255, rng.choice([0, 3], label.shape), label)
        iou.process({}, [sample(label.astype(np.uint8), prediction, str(number))])
    result = iou.evaluate(7)
    assert set(result) == {*('aAcc', 'mIoU', 'mAcc', 'mDice', 'mFscore', 'mPrecision', 'mRecall', 'mBoundaryIoU')}
    assert set(result.values()) == {100.0}
    assert '7 of 7 images scored, each once' in log.text
    assert 'mIoU 100.00 (3/4 classes)' in log.text
    assert re.search(r'\| +sky +\| absent \| absent \|', log.text)
    assert 'nan' not in log.text


def test_a_class_that_is_labelled_and_never_predicted_counts_with_0() -> None:
    label = np.array([[0, 0, 1]])
    iou = metric()
    iou.process({}, [sample(label, np.zeros_like(label))])
    result = iou.evaluate(1)
    assert result['mFscore'] == result['mDice'] == pytest.approx(100 * 0.8 / 2)
    assert result['mPrecision'] == pytest.approx(100 * 2 / 3)


def test_mmsegs_metric_agrees_where_it_is_exact() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        theirs = METRICS.build(dict(type='IoUMetric', iou_metrics=ALL))
    theirs.dataset_meta = dict(classes=CLASSES)
    ours = metric(boundary_ratio=None)
    labels, predictions = scenes()
    for number, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        for one in (ours, theirs):
            one.process({}, [sample(label, prediction, str(number))])
    expected = theirs.evaluate(3)
    result = ours.evaluate(3)
    assert list(result) == list(expected)
    assert result == pytest.approx(expected, abs=0.00501)


def test_tables_and_picture_are_written(tmp_path) -> None:
    labels, predictions = scenes()
    iou = metric(out_dir=tmp_path / 'evaluation', iou_metrics='mIoU')
    for number, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        iou.process({}, [sample(label, prediction, str(number))])
    result = iou.evaluate(3)
    folder = tmp_path / 'evaluation'
    with (folder / 'confusion.csv').open() as file:
        header, *rows = csv.reader(file)
    assert header == ['true class', *CLASSES]
    assert [row[0] for row in rows] == list(CLASSES)
    counted = labels != 255
    expected = confusion_matrix(labels[counted], predictions[counted], labels=range(4))
    assert np.array_equal(np.array([row[1:] for row in rows], int), expected)

    with (folder / 'per_class.csv').open() as file:
        table = list(csv.DictReader(file))
    assert [row['class'] for row in table] == list(CLASSES)
    assert table[2] == dict.fromkeys(table[2], 'absent') | {
        'class': 'sky',
        'labelled pixels': '0',
        'predicted pixels': '0',
    }
    ious = [float(row['IoU']) for row in table if row['IoU'] != 'absent']
    assert np.mean(ious) == pytest.approx(result['mIoU'], abs=1e-3)
    picture = Image.open(folder / 'confusion.png')
    assert min(picture.size) > 300
    assert len(picture.convert('RGB').getcolors(1 << 20)) > 50


def test_memory_does_not_grow_with_the_set() -> None:
    def kept(images: int) -> dict[str, int]:
        iou = metric()
        label = np.zeros((8, 8), np.uint8)
        for number in range(images):
            iou.process({}, [sample(label, label, str(number))])
        assert len(iou.results) == images
        assert all(isinstance(one, str) for one in iou.results)
        return {name: total.untyped_storage().nbytes() for name, total in iou.totals.items()}

    assert kept(20) == kept(200) == dict(confusion=4 * 4 * 8, boundary=2 * 4 * 8)


@pytest.mark.parametrize('value', [4, 33, -1])
def test_label_outside_the_classes_names_file_and_value(value: int) -> None:
    label = np.zeros((4, 4), np.int64)
    label[0, 0] = value
    label[1, 1] = 255
    with pytest.raises(ValueError, match=r'label map$') as error:
        metric().process({}, [sample(label, np.zeros_like(label))])
    assert str(error.value) == (
        f'labels of gtFine/val/a_labelIds.png have the values {value} (1 pixels): 0 to 3 (4 classes) and 255 (ignored) '
        'are expected. Load them with LoadStrictLabels and a label map'
    )


def bad(**changes) -> dict:
    label = np.zeros((4, 4), np.int64)
    return {name: value for name, value in (sample(label, label) | changes).items() if value is not None}


@pytest.mark.parametrize(
    ('given', 'text'),
    [
        (
            bad(pred_sem_seg=dict(data=torch.full((1, 4, 4), 20))),
            'predictions for leftImg8bit/val/a.png have the values 20 (16 pixels): the dataset has the classes 0 to 3; '
            "set the model's num_classes to 4",
        ),
        (
            bad(pred_sem_seg=dict(data=torch.zeros(1, 2, 4))),
            'the prediction for leftImg8bit/val/a.png has shape (2, 4), its labels (4, 4)',
        ),
        (
            bad(gt_sem_seg=None),
            'leftImg8bit/val/a.png has no labels, so it cannot be scored: tools/test.py --format-only writes '
            'predictions',
        ),
        (
            bad(seg_logits=dict(data=torch.zeros(4, 4, 4).index_fill(0, torch.tensor([2]), torch.nan))),
            'the scores of the prediction for leftImg8bit/val/a.png are not all finite: the weights diverged, or the '
            'precision is too low',
        ),
        (bad(img_path=None), "a sample has no 'img_path', which makes it count once: keep it in PackSegInputs"),
    ],
)
def test_samples_that_cannot_be_scored_are_refused(given: dict, text: str) -> None:
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        metric().process({}, [given])


@pytest.mark.parametrize('scores', [[torch.inf, -torch.inf], [-torch.inf, 0], [torch.nan, 0]])
def test_scores_that_are_not_finite_are_found_and_large_ones_are_not(scores: list[float]) -> None:
    require_finite(torch.full((2, 64, 64), 65504, dtype=torch.float16), 'a.png')
    with pytest.raises(ValueError, match=r'^the scores of the prediction for a.png are not all finite'):
        require_finite(torch.tensor(scores, dtype=torch.float16).view(2, 1, 1), 'a.png')


def test_unlabelled_sets_and_bad_arguments_are_refused() -> None:
    label = np.full((4, 4), 255)
    iou = metric()
    iou.process({}, [sample(label, np.zeros_like(label))])
    with pytest.raises(ValueError, match=r'^no pixel has a label: all are ignore_index=255$'):
        iou.evaluate(1)
    with pytest.raises(ValueError, match=r"^iou_metrics=\['IoU'\]: one or more of mIoU, mDice, mFscore are expected$"):
        metric(iou_metrics='IoU')
    with pytest.raises(ValueError, match=r'^boundary_ratio=0: a share of the diagonal above 0, or None, is expected$'):
        metric(boundary_ratio=0)
