"""tools/train.py --global-batch and --per-device, on a few clips."""

import re

import pytest
from mmengine.config import Config

from tests.tools.tiny_runs import iterations_in, logs, options, recipe, run_tool


def test_a_planned_run_accumulates_and_leaves_the_plan_in_its_config(tiny_data, tmp_path, capsys):
    short = options('video', tiny_data, 4)
    run_tool('train.py', recipe('video'), '--work-dir', tmp_path, '--global-batch', 2, *short)
    batch = 'effective batch 2 = 1 device(s) x 1 x accumulation 2'
    printed = capsys.readouterr().out
    assert f'batch plan: {batch}\n' in printed
    assert 'tuned for' not in printed
    (log,) = logs(tmp_path)
    assert batch in log
    assert 'ParamSchedulerPerStepHook' in log
    assert iterations_in(log) == [1, 2, 3, 4]
    (dumped,) = tmp_path.glob('*.py')
    cfg = Config.fromfile(dumped)
    assert cfg.batch_plan.run == cfg.batch_plan.recipe | dict(
        effective_batch=2,
        accumulation=2,
        learning_rate=2 * cfg.batch_plan.recipe.learning_rate,
        optimizer_steps=2,
        warm_up_steps=60,
        schedule_ends_steps=[1200],
    )
    assert cfg.optim_wrapper.optimizer.lr == cfg.batch_plan.run.learning_rate
    assert cfg.param_scheduler[-1].end == 1200


def test_the_config_of_a_planned_run_is_printed_and_nothing_else_happens(tiny_data, tmp_path, capsys):
    asked = ('--work-dir', tmp_path / 'work', '--global-batch', 2, '--print-config')
    run_tool('train.py', recipe('video'), *asked, *options('video', tiny_data, 4))
    printed = capsys.readouterr().out
    config, _, changes = printed.partition(f'--- {recipe("video")}')
    assert 'accumulative_counts=2' in config
    assert re.search(r'^-.*accumulative_counts=1', changes, re.MULTILINE)
    assert re.search(r'^\+.*accumulative_counts=2', changes, re.MULTILINE)
    assert not (tmp_path / 'work').exists()


def test_a_batch_that_does_not_divide_stops_before_anything_is_built(tiny_data, tmp_path):
    asked = ('--work-dir', tmp_path / 'work', '--global-batch', 3, '--per-device', 2)
    with pytest.raises(
        ValueError, match=r'^global batch 3 is not a multiple of 1 device\(s\) x 2 = 2: the nearest are 2 and'
    ):
        run_tool('train.py', recipe('video'), *asked, *options('video', tiny_data, 2))
    assert not (tmp_path / 'work').exists()
