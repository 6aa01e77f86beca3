import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from wsbcn_mm.video.metrics import TopKAccuracy
from wsbcn_mm.video.samples import ClipDataSample


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
    monkeypatch.setattr('wsbcn_mm.video.metrics.print_log', lambda text, *args, **kwargs: lines.append(text))
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
    assert log == ['203 of 203 annotated clips scored']


def test_a_clip_seen_twice_counts_once_and_a_missing_one_is_said(log):
    samples = make_samples(6, 7)
    metric = TopKAccuracy()
    metric.dataset_meta = {'num_annotated': 8}
    metric.process(None, [sample.to_dict() for sample in [*samples, samples[0], samples[3]]])
    assert metric.evaluate(6) == pytest.approx(expected(samples))
    assert log == ['6 of 8 annotated clips scored: the accuracy is over these only']
    with pytest.raises(ValueError, match='no clip was scored'):
        metric.evaluate(6)


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
    assert log[-1] == 'accuracy of each class\n1/2  50.00 %  left\nabsent  right\n1/1 100.00 %  up'


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        ({'sample_idx': None}, "clip '0.mp4' has no 'sample_idx', by which it is counted once"),
        ({'pred_score': None}, "pred_score of clip '0.mp4' is missing or not finite"),
        ({'pred_score': torch.tensor([0.5, float('nan')])}, "pred_score of clip '0.mp4' is missing or not finite"),
        ({'gt_label': torch.tensor(9)}, "gt_label=9 of clip '0.mp4': the model has 6 classes"),
    ],
)
def test_bad_predictions(change, text):
    sample = {**make_samples(1, 6)[0].to_dict(), **change}
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        TopKAccuracy().process(None, [sample])


def test_bad_topk():
    with pytest.raises(ValueError, match=r'topk=\(0, 5\): at least one k'):
        TopKAccuracy(topk=(0, 5))


def score_on_one_rank(rank, world_size, store, round_up, out):
    dist.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=world_size)
    samples = make_samples(7, 9)
    evaluator = Evaluator([{'type': 'TopKAccuracy'}])
    for index in DefaultSampler(samples, shuffle=False, round_up=round_up):
        evaluator.process([samples[index]])
    torch.save(evaluator.evaluate(len(samples)), f'{out}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('round_up', [True, False])
@pytest.mark.filterwarnings('ignore:y_pred contains classes')
def test_every_clip_counts_once_across_ranks(tmp_path, round_up):
    arguments = (3, str(tmp_path / 'store'), round_up, str(tmp_path))
    mp.start_processes(score_on_one_rank, arguments, nprocs=3, start_method='fork')
    for rank in range(3):
        assert torch.load(tmp_path / f'{rank}.pth') == pytest.approx(expected(make_samples(7, 9)))
