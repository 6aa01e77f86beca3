from types import SimpleNamespace

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

import wsbcn_mm.video  # noqa: F401


def runner(round_up: bool, metric: str = 'TopKAccuracy', samples: int = 7) -> SimpleNamespace:
    data = list(range(samples))
    loop = SimpleNamespace(
        dataloader=DataLoader(data, sampler=DefaultSampler(data, shuffle=False, round_up=round_up)),
        evaluator=Evaluator(dict(type=metric, **(dict(out_file_path='all.pkl') if metric == 'DumpResults' else {}))),
    )
    return SimpleNamespace(val_loop=loop, test_loop=loop)


@pytest.fixture
def three_processes(monkeypatch):
    monkeypatch.setattr('wsbcn_mm.engine.evaluation.streaming_metric.get_world_size', lambda: 3)
    return HOOKS.build(dict(type='EvaluationPaddingHook'))


@pytest.mark.parametrize('stage', ['before_train', 'before_val', 'before_test'])
def test_a_sampler_that_would_pad_stops_the_run_before_it_starts(three_processes, stage):
    with pytest.raises(ValueError, match='round_up=False') as error:
        getattr(three_processes, stage)(runner(round_up=True))
    assert str(error.value) == (
        '3 processes cannot share 7 samples evenly: the sampler of SimpleNamespace would pad, and 2 samples would be '
        "scored twice; set sampler=dict(type='DefaultSampler', shuffle=False, round_up=False) in val_dataloader and "
        'test_dataloader'
    )


def test_samplers_without_padding_and_other_metrics_are_accepted(three_processes):
    three_processes.before_test(runner(round_up=False))
    three_processes.before_test(runner(round_up=True, samples=9))
    three_processes.before_test(runner(round_up=True, metric='DumpResults'))
    three_processes.before_train(SimpleNamespace(val_loop=None))


def test_one_process_never_pads():
    HOOKS.build(dict(type='EvaluationPaddingHook')).before_test(runner(round_up=True))
