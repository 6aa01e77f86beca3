"""From a recipe to a running Runner: what `train` and `evaluate` add to configs of others, and take besides a file."""

import os

import mmseg
import pytest
from mmengine.config import Config
from mmengine.hooks import Hook

from tests.tools.tiny_runs import options, recipe, run_tool
from wsbcn_mm.engine.recipe.load import load_recipe
from wsbcn_mm.engine.run import evaluate, train

STOCK = os.path.join(os.path.dirname(mmseg.__file__), '.mim', 'configs', '_base_', 'default_runtime.py')
SCHEDULE = os.path.join(os.path.dirname(mmseg.__file__), '.mim', 'configs', '_base_', 'schedules', 'schedule_20k.py')


@pytest.fixture
def stock(tmp_path):
    """A recipe with the hooks, schedule and runtime that mmsegmentation ships in place of ours."""
    runtime, schedule = Config.fromfile(STOCK), Config.fromfile(SCHEDULE)
    cfg = Config.fromfile(recipe('segmentation'))
    for key in ('default_hooks', 'param_scheduler', 'train_cfg', 'optim_wrapper'):
        cfg[key] = schedule[key]
    for key in ('allow_norm_mismatch', 'allow_class_mismatch', 'activation_memory', 'randomness', 'auto_scale_lr'):
        cfg.pop(key, None)
    for key in ('env_cfg', 'log_processor', 'log_level', 'load_from', 'resume'):
        cfg[key] = runtime[key]
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    cfg.dump(str(tmp_path / 'stock.py'))
    return tmp_path / 'stock.py'


def guards_of(work_dir):
    (dumped,) = work_dir.glob('*.py')
    hooks = Config.fromfile(dumped).default_hooks
    return {key for key in hooks if key in ('checkpoint_guard', 'step_statistics', 'non_finite', 'norm_report')}


def test_a_stock_config_gets_the_guards_and_its_checkpoint_is_evaluated(stock, tiny_data, tmp_path, capsys):
    run_tool('train.py', stock, '--work-dir', tmp_path / 'work', *options('segmentation', tiny_data, 2))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('default_hooks lacks')]
    assert lines == [
        'default_hooks lacks checkpoint_guard, step_statistics, non_finite, norm_report: added; to switch one off: '
        'default_hooks.checkpoint_guard=None'
    ]
    assert guards_of(tmp_path / 'work') == {'checkpoint_guard', 'step_statistics', 'non_finite', 'norm_report'}
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert 'BCN layers move their estimates once per optimizer step' in log.read_text()
    checkpoint = tmp_path / 'work' / 'iter_2.pth'
    run_tool('test.py', stock, checkpoint, '--work-dir', tmp_path / 'test', *options('segmentation', tiny_data, 2))
    assert (tmp_path / 'test' / 'metrics.json').is_file()
    with pytest.raises(ValueError, match=r'Weights do not work under another norm'):
        run_tool(
            'test.py',
            *(recipe('segmentation', 'gn'), checkpoint, '--work-dir', tmp_path / 'other'),
            *options('segmentation', tiny_data, 2),
        )


def test_a_guard_that_a_key_switches_off_stays_off(stock, tiny_data, tmp_path, capsys):
    off = options('segmentation', tiny_data, 2, 'default_hooks.norm_report=None')
    run_tool('train.py', stock, '--work-dir', tmp_path / 'work', *off)
    assert 'default_hooks lacks checkpoint_guard, step_statistics, non_finite: added' in capsys.readouterr().out
    assert guards_of(tmp_path / 'work') == {'checkpoint_guard', 'step_statistics', 'non_finite'}


class Iterations(Hook):
    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(runner.iter)


def test_a_config_in_memory_trains_with_hooks_of_the_caller(tiny_data, tmp_path):
    def config(name):
        changes = [*options('video', tiny_data, 2)[1:], f'experiment_name=in_memory_{name}']
        return load_recipe(recipe('video'), work_dir=str(tmp_path / name), options=changes)

    counter = Iterations()
    train(config('train'), launcher='none', hooks=[counter])
    assert counter.seen == [0, 1]
    metrics, cfg = evaluate(
        config('test'), str(tmp_path / 'train' / 'iter_2.pth'), change=lambda cfg: cfg.update(mark='changed')
    )
    assert set(metrics) >= {'acc/top1', 'acc/num_clips'}
    assert cfg.mark == 'changed'


def test_missing_images_are_found_before_the_runner(tiny_data, tmp_path):
    suffixes = [f'{split}_dataloader.dataset.img_suffix=.jpg' for split in ('val', 'test')]
    args = ['--work-dir', tmp_path / 'work', *options('segmentation', tiny_data, 2, *suffixes)]
    with pytest.raises(FileNotFoundError, match=r"^val_dataloader.dataset.img_suffix='.jpg': .* has no such file"):
        run_tool('train.py', recipe('segmentation'), *args)
    (tmp_path / 'none.pth').touch()
    with pytest.raises(FileNotFoundError, match=r"^test_dataloader.dataset.img_suffix='.jpg': "):
        run_tool('test.py', recipe('segmentation'), tmp_path / 'none.pth', *args)
    assert not (tmp_path / 'work').exists()
