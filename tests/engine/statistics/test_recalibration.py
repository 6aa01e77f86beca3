"""PreciseStatisticsHook in real Runners: what is validated and saved is measured, and training does not notice."""

import copy
from functools import partial

import pytest
import torch

from tests.engine.toy_runs import (
    NORMS,
    STATISTICS,
    Points,
    Toy,
    assert_close,
    assert_equal,
    load,
    log_of,
    runner_of,
    state_of,
)
from wsbcn_mm.engine.data.training_batches import losses, training_batches
from wsbcn_mm.engine.statistics.recalibration import KEY, PreciseStatisticsHook
from wsbcn_mm.surgery.calibration import calibrate

PRECISE = dict(type='PreciseStatisticsHook', samples=12)
EMA = dict(type='EMAPerStepHook', momentum=0.3)


def measured(state, norm):
    """State with the statistics that its weights should have."""
    model = Toy(norm)
    model.load_state_dict(state)
    loader = torch.utils.data.DataLoader(Points(), batch_size=2)
    calibrate(model, training_batches(loader, 12), forward=partial(losses, model))
    return state_of(model)


@pytest.fixture(scope='module', params=[('bn', False), ('bcn', False), ('bcn', True)], ids=str)
def runs(request, tmp_path_factory):
    """Norm, whether there is a moving average, and runs without and with the hook that validate within a step."""
    norm, averaged = request.param
    settings = dict(iters=6, accumulation=2, val_interval=3, interval=3)
    found = []
    for hooks in ([], [PRECISE]):
        folder = tmp_path_factory.mktemp(f'{norm}-{averaged}-{len(hooks)}')
        runner = runner_of(folder, Toy(norm), *hooks, *([copy.deepcopy(EMA)] if averaged else []), **settings)
        runner.train()
        found.append(runner)
    return norm, averaged, found


def test_validation_has_the_statistics_of_the_weights_that_it_has(runs):
    norm, _, (plain, precise) = runs
    assert len(precise.outputs.states) == 2
    for state, without in zip(precise.outputs.states, plain.outputs.states, strict=True):
        assert_equal(state, without, [name for name in state if not name.startswith(NORMS)])
        assert_close(state, measured(state, norm), STATISTICS)
        with pytest.raises(AssertionError):
            assert_close(without, measured(state, norm), STATISTICS)
    assert precise.outputs.sums != plain.outputs.sums
    assert '2 norms measured on 12 samples, 0 were not reached; the last sweep moved' in log_of(precise)


def test_training_does_not_notice(runs):
    _, _, (plain, precise) = runs
    assert_equal(state_of(plain.model), state_of(precise.model))
    assert all(norm._forward_pre_hooks == {} for norm in precise.model.modules())


def test_checkpoints_have_what_validation_saw(runs):
    """They are saved before the validation of the same iteration, which measures no second time."""
    _, averaged, (plain, precise) = runs
    assert log_of(precise).count('norms measured') == 2
    for number, state in enumerate(precise.outputs.states):
        name = f'iter_{3 * (number + 1)}.pth'
        saved, without = (load(f'{runner.work_dir}/{name}') for runner in (precise, plain))
        assert_equal(saved['state_dict'], state)
        own = saved['state_dict'] | saved[KEY]
        assert_equal(own, without['state_dict'])
        assert ('ema_state_dict' in saved) == averaged


def test_a_resumed_run_is_the_run_that_was_never_stopped(runs, tmp_path):
    norm, averaged, (_, straight) = runs
    hooks = [PRECISE, *([copy.deepcopy(EMA)] if averaged else [])]
    settings = dict(iters=6, accumulation=2, val_interval=3, interval=6)
    first = f'{straight.work_dir}/iter_3.pth'
    resumed = runner_of(tmp_path, Toy(norm), *hooks, **settings, load_from=first, resume=True)
    resumed.train()
    first, second = (load(f'{runner.work_dir}/iter_6.pth') for runner in (straight, resumed))
    for entry in ('state_dict', KEY, *(['ema_state_dict'] if averaged else [])):
        assert_equal(first[entry], second[entry])


def test_models_without_running_statistics_are_left_alone(tmp_path):
    runner_of(tmp_path, Toy('gn'), PRECISE, iters=2, interval=2, val_interval=2).train()
    assert KEY not in load(tmp_path / 'iter_2.pth')


def test_what_it_does_not_take():
    with pytest.raises(ValueError, match='samples=0, sweeps=3: 1 or more is expected'):
        PreciseStatisticsHook(samples=0)
