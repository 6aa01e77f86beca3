"""The verdict on real trainings with fast or slow data."""

import logging
import time
from pathlib import Path

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner

import wsbcn_mm.engine.hooks  # noqa: F401


class LoadSlowly:
    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, results):
        time.sleep(self.seconds)
        return results


class Pack:
    def __call__(self, results):
        return dict(inputs=torch.ones(1), data_samples=results['sample_idx'])


class Samples(BaseDataset):
    def load_data_list(self):
        return [dict(number=number) for number in range(8)]


class Net(BaseModel):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples, mode='tensor'):
        time.sleep(self.seconds)
        return dict(loss=(self.weight * torch.stack(list(inputs))).sum())


def verdicts(folder: Path, name: str, dataset, iterations: int = 14, step: float = 0.02) -> list[tuple[int, str]]:
    """Return (level, text) of every message that the hook logs in a training."""
    runner = Runner(
        model=Net(step),
        work_dir=str(folder),
        experiment_name=f'{folder.name}_{name}',
        train_dataloader=dict(batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'), dataset=dataset),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='DataSpeedHook', iterations=12, skipped=2)],
        default_hooks=dict(checkpoint=None),
    )
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append((record.levelno, record.getMessage()))
    runner.logger.addHandler(handler)
    runner.train()
    return [(level, text) for level, text in found if text.startswith('data ')]


def samples(seconds: float) -> Samples:
    return Samples(pipeline=[LoadSlowly(seconds), Pack()], serialize_data=False)


def test_fast_data_are_fine(tmp_path: Path) -> None:
    ((level, text),) = verdicts(tmp_path, 'fast', samples(0.0), step=0.15)
    assert level == logging.INFO
    assert text.startswith('data ')
    assert text.endswith(' s): fine')


def test_slow_data_are_decode_bound(tmp_path: Path) -> None:
    ((level, text),) = verdicts(tmp_path, 'slow', samples(0.03))
    assert level == logging.WARNING
    assert 'decode-bound: decode ' in text
    assert '(LoadSlowly ' in text
    assert text.endswith('. tools/benchmark_data.py RECIPE times every stage')


def test_data_without_a_pipeline_have_a_verdict_too(tmp_path: Path) -> None:
    class Plain(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            time.sleep(0.03)
            return dict(inputs=torch.ones(1), data_samples=index)

    ((_, text),) = verdicts(tmp_path, 'plain', Plain())
    assert ': the loader does not keep up with the model. ' in text


def test_a_shorter_training_has_none(tmp_path: Path) -> None:
    assert verdicts(tmp_path, 'short', samples(0.0), iterations=11) == []


def test_numbers_that_leave_nothing_to_count_are_rejected() -> None:
    with pytest.raises(ValueError, match=r'^iterations=10, skipped=10: 0 <= skipped < iterations is expected$'):
        HOOKS.build(dict(type='DataSpeedHook', iterations=10))
