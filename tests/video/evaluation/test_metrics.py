import re

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from wsbcn_mm.video.data.samples import ClipDataSample
from wsbcn_mm.video.evaluation.metrics import TopKAccuracy


def make_samples(num_clips, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for clip in range(num_clips):
        sample = ClipDataSample(metainfo={'sample_idx': clip, 'path': f'{clip}.mp4'})
        sample.gt_label = torch.randint(num_classes, (), generator=generator)
        sample.pred_score = torch.rand(num_classes, generator=generator)
        samples.append(sample)
    return samples


def expected(samples):
    labels = np.array([int(sample.gt_label) for sample in samples])
    scores = np.stack([sample.pred_score.numpy() for sample in samples])
    classes = np.arange(scores.shape[1])
    return {
        'acc/top1': 100 * top_k_accuracy_score(labels, scores, k=1, labels=classes),
        'acc/top5': 100 * top_k_accuracy_score(labels, scores, k=5, labels=classes),
        'acc/mean_class': 100 * balanced_accuracy_score(labels, scores.argmax(1)),
        'acc/num_clips': len(samples),
    }


@pytest.fixture
def log(monkeypatch):
    lines = []
    for module in ('video.evaluation.metrics', 'engine.evaluation.streaming_metric'):
        monkeypatch.setattr(f'wsbcn_mm.{module}.print_log', lambda text, *args, **kwargs: lines.append(text))
    return lines


@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_equals_scikit_learn(log):
    samples = make_samples(203, 12)
    evaluator = Evaluator([{'type': 'TopKAccuracy'}])
    for start in range(0, 203, 10):
        evaluator.process(samples[start : start + 10])
    values = evaluator.evaluate(203)
    assert values == pytest.approx(expected(samples))
    assert next(iter(values)) == 'acc/top1'
    assert log[0] == '203 of 203 annotated clips scored, each once'


def test_clips_that_the_dataset_left_out_or_could_not_read_are_reported(log):
    samples = make_samples(6, 7)
    metric = TopKAccuracy()
    metric.dataset_meta = {'num_annotated': 10}
    unreadable = [sample.to_dict() | {'unreadable': True} for sample in make_samples(8, 7)[6:]]
    metric.process(None, [*(sample.to_dict() for sample in samples), *unreadable])
    assert metric.evaluate(8) == pytest.approx(expected(samples))
    assert log[0] == (
        '6 of 10 annotated clips scored, each once; 2 left out by the dataset, 2 unreadable: '
        'the result is over those scored'
    )


def test_a_set_of_unreadable_clips_has_no_accuracy():
    metric = TopKAccuracy()
    metric.process(None, [sample.to_dict() | {'unreadable': True} for sample in make_samples(2, 7)])
    with pytest.raises(ValueError, match=r'^none of 2 annotated clips was scored: all 2 are unreadable$'):
        metric.evaluate(2)
    metric.process(None, [sample.to_dict() for sample in make_samples(2, 7)])
    assert metric.evaluate(2)['acc/num_clips'] == 2


def test_confusion_counts_a_tie_as_the_other_class(tmp_path):
    samples = make_samples(3, 3)
    truth, scores = [0, 0, 2], [[0.4, 0.4, 0.2], [0.6, 0.3, 0.1], [0.0, 0.1, 0.9]]
    for sample, label, score in zip(samples, truth, scores, strict=True):
        sample.gt_label, sample.pred_score = torch.tensor(label), torch.tensor(score)
    metric = TopKAccuracy(topk=(1, 2), out_dir=tmp_path)
    metric.dataset_meta = {'classes': ['left', 'right', 'up']}
    metric.process(None, [sample.to_dict() for sample in samples])
    assert metric.evaluate(3) == pytest.approx(
        {'acc/top1': 200 / 3, 'acc/top2': 100.0, 'acc/mean_class': 75.0, 'acc/num_clips': 3}
    )
    assert (tmp_path / 'confusion.csv').read_text() == 'true class,left,right,up\nleft,1,1,0\nright,0,0,0\nup,0,0,1\n'
    assert (tmp_path / 'per_class.csv').read_text() == (
        'class,accuracy,right,clips\nleft,50.0000,1,2\nright,absent,0,0\nup,100.0000,1,1\n'
    )
    assert Image.open(tmp_path / 'confusion.png').format == 'PNG'


def test_memory_does_not_grow_with_the_set():
    def kept(clips):
        metric = TopKAccuracy()
        metric.process(None, [sample.to_dict() for sample in make_samples(clips, 9)])
        assert metric.results == list(range(clips))
        return {name: total.untyped_storage().nbytes() for name, total in metric.totals.items()}

    assert kept(20) == kept(200) == {'above': 9 * 8, 'confusion': 81 * 8}


def test_few_classes_leave_top5_out(log):
    metric = TopKAccuracy()
    metric.process(None, [sample.to_dict() for sample in make_samples(20, 4)])
    assert set(metric.evaluate(20)) == {'acc/top1', 'acc/mean_class', 'acc/num_clips'}
    assert 'top-5 left out: it is always right with 4 classes' in log


def test_equal_scores_are_not_right():
    sample = make_samples(1, 6)[0]
    sample.pred_score = torch.full((6,), 1 / 6)
    metric = TopKAccuracy()
    metric.process(None, [sample.to_dict()])
    assert metric.evaluate(1) == {'acc/top1': 0.0, 'acc/top5': 0.0, 'acc/mean_class': 0.0, 'acc/num_clips': 1}


def test_per_class(log):
    samples = make_samples(3, 3)
    for sample, label, predicted in zip(samples, [0, 0, 2], [0, 1, 2], strict=True):
        sample.gt_label = torch.tensor(label)
        sample.pred_score = torch.eye(3)[predicted]
    metric = TopKAccuracy(per_class=True)
    metric.dataset_meta = {'classes': ['left', 'right', 'up']}
    metric.process(None, [sample.to_dict() for sample in samples])
    assert metric.evaluate(3)['acc/mean_class'] == pytest.approx(75.0)
    assert log[-2] == 'mean-class accuracy 75.00 (2/3 classes)'
    assert log[-1] == 'accuracy of each class\n1/2  50.00 %  left\nabsent  right\n1/1 100.00 %  up'


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'sample_idx': None}, "clip '0.mp4' has no 'sample_idx', which makes it count once"),
        ({'pred_score': None}, "pred_score of clip '0.mp4' is missing or not finite"),
        ({'pred_score': torch.tensor([0.5, float('nan')])}, "pred_score of clip '0.mp4' is missing or not finite"),
        ({'gt_label': torch.tensor(9)}, "gt_label=9 of clip '0.mp4': 0 to 5 is expected"),
    ],
)
def test_bad_predictions(change, text):
    sample = {**make_samples(1, 6)[0].to_dict(), **change}
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        TopKAccuracy().process(None, [sample])


def test_bad_topk():
    with pytest.raises(ValueError, match=r'topk=\(0, 5\): at least one k'):
        TopKAccuracy(topk=(0, 5))
