"""StatisticsMergeHook in Runners of two gloo processes: what is validated and saved is of both, averages included."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from tests.engine.toy_runs import NORMS, STATISTICS, Points, Toy, assert_close, assert_equal, load, runner_of, state_of
from wsbcn_mm.engine.data.training_batches import losses, training_batches
from wsbcn_mm.engine.runner import averaged_model, unwrapped_model
from wsbcn_mm.engine.statistics.recalibration import KEY
from wsbcn_mm.surgery.calibration import calibrate

HOOKS = {
    'bn': [dict(type='StatisticsMergeHook')],
    'bn-average': [dict(type='StatisticsMergeHook'), dict(type='EMAPerStepHook', momentum=0.3)],
    'bn-precise': [dict(type='StatisticsMergeHook'), dict(type='PreciseStatisticsHook', samples=5)],
    'bcn': [dict(type='StatisticsMergeHook')],
}
WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)


class Before(Hook):
    """States of the model and of its average before they are merged."""

    priority = 'HIGH'
    states = ()

    def gather_for_checkpoint(self, runner):
        models = [unwrapped_model(runner), averaged_model(runner)]
        self.states = self.states or [state_of(model) for model in models if model is not None]


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    for name, hooks in HOOKS.items():
        run, before = Path(folder) / name, Before()
        settings = dict(iters=3, interval=3, val_interval=3, launcher='pytorch', cfg=dict(model_wrapper_cfg=WRAPPER))
        runner = runner_of(run, Toy(name.split('-')[0]), *hooks, before, **settings)
        runner.train()
        torch.save((before.states, runner.outputs.states[0]), run / f'{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Name -> states of each rank before merging, states that each validated, and the checkpoint."""
    folder = tmp_path_factory.mktemp('ranks')
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    found = {}
    for name in HOOKS:
        before, validated = zip(*(load(folder / name / f'{rank}.pt') for rank in range(2)), strict=True)
        found[name] = before, validated, load(folder / name / 'iter_3.pth')
    return found


def pooled(states):
    merged = dict(states[0])
    for norm in NORMS:
        means, variances = (torch.stack([s[f'{norm}.running_{of}'] for s in states]) for of in ('mean', 'var'))
        merged[f'{norm}.running_mean'] = means.mean(0)
        merged[f'{norm}.running_var'] = variances.mean(0) + means.var(0, correction=0)
    return merged


@pytest.mark.parametrize('name', ['bn', 'bn-average'])
def test_batch_norm_is_validated_and_saved_with_the_statistics_of_both_ranks(runs, name):
    before, validated, saved = runs[name]
    own = [states[-1] for states in before]  # of the average, where there is one
    with pytest.raises(AssertionError):
        assert_close(*own, STATISTICS)
    assert_equal(*validated)
    assert_equal(saved['state_dict'], validated[0])
    assert_close(saved['state_dict'], pooled(own), saved['state_dict'])
    if name == 'bn-average':
        raw = {key.removeprefix('module.'): value for key, value in saved['ema_state_dict'].items() if key != 'steps'}
        assert_close(raw, pooled([states[0] for states in before]), raw)


def test_bcn_agrees_already_and_stays_as_it_is(runs):
    before, validated, saved = runs['bcn']
    for states in (*(states[0] for states in before), *validated):
        assert_equal(saved['state_dict'], states)


def test_measured_statistics_are_those_of_one_process(runs):
    before, validated, saved = runs['bn-precise']
    assert_equal(*validated)
    assert_equal(saved['state_dict'], validated[0])
    model = Toy('bn')
    model.load_state_dict(saved['state_dict'])
    calibrate(model, training_batches(DataLoader(Points(), batch_size=2), 5), forward=partial(losses, model))
    first, second = STATISTICS[:2], STATISTICS[2:]
    assert_close(saved['state_dict'], model.state_dict(), first)
    for name in second:  # depends on how the samples are split into batches
        torch.testing.assert_close(saved['state_dict'][name], model.state_dict()[name], rtol=0.1, atol=0.05)
    assert_close(saved[KEY], pooled([states[0] for states in before]), STATISTICS)
