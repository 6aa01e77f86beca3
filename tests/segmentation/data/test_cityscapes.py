"""Raw Cityscapes label files in both encodings, and the errors for wrong ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, METRICS
from PIL import Image

from tests.segmentation.small_trees import cityscapes_tree
from wsbcn_mm.segmentation.data.cityscapes import LABEL_IDS, LABEL_MAPS, encoding_of

TRAIN_IDS = '_gtFine_labelTrainIds.png'
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadStrictLabels'), dict(type='PackSegInputs')]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    cityscapes_tree(tmp_path)
    return tmp_path


def dataset(tree: Path, split: str = 'train', **kwargs):
    init_default_scope('mmseg')
    arguments = dict(type='StrictCityscapesDataset', split=split, data_root=str(tree), pipeline=PIPELINE) | kwargs
    return DATASETS.build(arguments)


def label_files(tree: Path, split: str = 'train') -> list[Path]:
    return sorted((tree / 'gtFine' / split).rglob('*_labelIds.png'))


def write_train_ids(file: Path, target: Path) -> None:
    """Write what Cityscapes' own script writes: the published table, pixel by pixel."""
    raw = np.asarray(Image.open(file))
    train_ids = [[LABEL_IDS.index(value) if value in LABEL_IDS else 255 for value in row] for row in raw.tolist()]
    Image.fromarray(np.array(train_ids, np.uint8)).save(target)


def test_the_table_has_the_classes_that_cityscapes_evaluates() -> None:
    ignored = {raw for raw, index in LABEL_MAPS['labelIds'].items() if index == 255}
    assert ignored == {0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30}
    assert set(LABEL_MAPS['labelIds']) == set(range(34))
    assert [LABEL_MAPS['labelIds'][raw] for raw in (7, 8, 26, 33)] == [0, 1, 13, 18]


def test_both_encodings_give_the_same_labels_and_the_log_says_which(tree: Path, caplog) -> None:
    for file in label_files(tree):
        write_train_ids(file, Path(str(file).replace('labelIds', 'labelTrainIds')))
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    sets = dataset(tree), dataset(tree, seg_map_suffix=TRAIN_IDS)
    logger.removeHandler(caplog.handler)
    folder = tree / 'gtFine' / 'train'
    assert f'{folder}: 4 label files, encoding labelIds detected from 4 of them' in caplog.text
    assert f'{folder}: 4 label files, encoding labelTrainIds detected from 4 of them' in caplog.text
    for index in range(4):
        label, other = (one[index]['data_samples'].gt_sem_seg.data for one in sets)
        assert torch.equal(label, other)
        assert set(label.unique().tolist()) == {*range(19), 255}


def test_a_mixed_folder_is_refused(tree: Path) -> None:
    first, *_, last = label_files(tree)
    write_train_ids(last, last)
    with pytest.raises(ValueError, match=r'both encodings') as error:
        dataset(tree)
    assert str(error.value) == (
        f'label files of both encodings in one folder: {first} has 19, which only labelIds have, and {last} has 255, '
        'which only labelTrainIds have. Keep one encoding per folder'
    )
    strict = dataset(tree, encoding='labelIds')
    with pytest.raises(ValueError, match=rf'^label file {last} has values outside the label map: 255 \(\d+ pixels\)'):
        strict[len(strict) - 1]


def test_values_that_tell_nothing_or_belong_to_no_encoding() -> None:
    assert encoding_of({'a': {0, 18}, 'b': {7, 33}}) == 'labelIds'
    assert encoding_of({'a': {0, 18}, 'b': {7, 255}}) == 'labelTrainIds'
    with pytest.raises(ValueError, match=r"^encoding='auto': the 1 label files read fit both .* Set encoding='labelId"):
        encoding_of({'a': {0, 18}})
    with pytest.raises(ValueError, match=r'^label file a has the value 34, which belongs to neither Cityscapes encodi'):
        encoding_of({'a': {0, 34}})


def test_only_labels_of_the_other_suffix(tree: Path) -> None:
    for file in label_files(tree):
        file.rename(str(file).replace('labelIds', 'labelTrainIds'))
    with pytest.raises(FileNotFoundError, match=r'found 4 images .* 0 labels .*nearest existing name: .*TrainIds.png$'):
        dataset(tree)


def test_chosen_classes_leave_the_others_out(tree: Path) -> None:
    chosen = dataset(tree, metainfo=dict(classes=('car', 'road')))
    assert chosen.metainfo['label_ids'] == (26, 7)
    label = chosen[0]['data_samples'].gt_sem_seg.data[0].numpy()
    raw = np.asarray(Image.open(label_files(tree)[0]))
    assert np.array_equal(label, np.where(raw == 26, 0, np.where(raw == 7, 1, 255)))


def test_the_test_split_has_images_only(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"^split='test' has no public ground truth") as error:
        dataset(tree, 'test')
    assert 'tools/test.py --format-only' in str(error.value)
    images = dataset(tree, 'test', pipeline=[PIPELINE[0], PIPELINE[2]])
    assert len(images) == 2
    assert 'gt_sem_seg' not in images[0]['data_samples']


@pytest.mark.parametrize(('name', 'value'), [('split', 'trainval'), ('encoding', 'ids')])
def test_unknown_arguments_are_refused(tree: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf'^{name}={value!r}: one of .* is expected$'):
        dataset(tree, **{name: value})


def test_a_perfect_predictor_scores_100(tree: Path) -> None:
    samples = dataset(tree, 'val')
    metric = METRICS.build(dict(type='StrictIoUMetric', iou_metrics=['mIoU']))
    metric.dataset_meta = samples.metainfo
    for index in range(len(samples)):
        found = samples[index]['data_samples']
        label = found.gt_sem_seg.data
        prediction = dict(data=label.where(label != 255, 3))
        metric.process({}, [found.to_dict() | dict(pred_sem_seg=prediction)])
    assert metric.evaluate(len(samples)) == dict(aAcc=100, mIoU=100, mAcc=100, mBoundaryIoU=100)
