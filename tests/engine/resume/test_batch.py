"""A resumed run keeps batch, length and learning rate of its checkpoint, also on other devices."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.engine.resume.counted_runs import Counted, position
from wsbcn_mm.engine.recipe.batch_plan import plan_batch
from wsbcn_mm.engine.resume.batch import plan_batch_as_before, position_to_resume
from wsbcn_mm.engine.resume.position import Position, planned_recipe


@pytest.fixture
def recipe(tmp_path):
    return Config(
        dict(
            work_dir=str(tmp_path / 'work'),
            train_dataloader=dict(batch_size=1),
            auto_scale_lr=dict(base_batch_size=8, rule='linear', enable=False),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.08)),
            param_scheduler=[dict(type='PolyLR', begin=0, end=100, by_epoch=False)],
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=100, val_interval=10),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10)),
        )
    )


def left_behind(cfg, was):
    """Write the work_dir of a killed run, and let `cfg` resume it."""
    folder = Path(cfg.work_dir)
    folder.mkdir(exist_ok=True)
    torch.save(dict(meta=dict(iter=10, position=was._asdict())), folder / 'iter_10.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_10.pth'))
    cfg.resume = True


def test_a_recipe_that_ran_unchanged_keeps_length_and_learning_rate_on_other_devices(recipe):
    """The recipe was tuned for 8 samples per step and trained with 2."""
    left_behind(recipe, position(2))
    lines = plan_batch_as_before(recipe, 1)
    assert lines[0] == 'batch plan: effective batch 2 = 1 device(s) x 1 x accumulation 2'
    assert (recipe.train_cfg.max_iters, recipe.optim_wrapper.accumulative_counts) == (200, 2)
    assert recipe.optim_wrapper.optimizer.lr == 0.08
    assert recipe.default_hooks.param_scheduler.type == 'ParamSchedulerPerStepHook'


def test_a_run_that_was_given_its_batch_keeps_it_on_other_devices(recipe):
    """`--global-batch 16 --per-device 2` on four devices, then two."""
    before = copy.deepcopy(recipe)
    plan_batch(before, 4, global_batch=16, per_device=2)
    left_behind(recipe, position(4, 2, 2))
    plan_batch_as_before(recipe, 2)
    assert (recipe.train_dataloader.batch_size, recipe.optim_wrapper.accumulative_counts) == (2, 4)
    assert recipe.train_cfg.max_iters == 2 * before.train_cfg.max_iters
    assert recipe.optim_wrapper.optimizer.lr == before.optim_wrapper.optimizer.lr == 0.16


def position_of(cfg, devices):
    """Return the position of a run with a planned config."""
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    loader, loop = cfg.train_dataloader, cfg.train_cfg
    return Position(devices, loader.batch_size, accumulation, 1, loop.max_iters, 24, 0, planned_recipe(cfg))


@pytest.mark.parametrize('batch', [None, 2, 8, 16])
def test_devices_may_change_again_and_again(recipe, batch):
    """A recipe of one sample, tuned for 8, on two devices, as it is or given a batch; then on one, on one, on two."""
    first = copy.deepcopy(recipe)
    plan_batch(first, 2, global_batch=batch)
    was = position_of(first, 2)
    for devices in (1, 1, 2, 2):
        cfg = copy.deepcopy(recipe)
        left_behind(cfg, was)
        plan_batch_as_before(cfg, devices)
        now = position_of(cfg, devices)
        assert now.batch.samples == was.batch.samples == (batch or 2)
        assert now.optimizer_steps == was.optimizer_steps
        assert cfg.optim_wrapper.optimizer.lr == first.optim_wrapper.optimizer.lr
        was = now
    assert cfg.train_cfg.max_iters == first.train_cfg.max_iters


@pytest.mark.parametrize('devices', [1, 2])
def test_a_recipe_with_more_iterations_trains_longer(recipe, devices):
    """By a factor that is also that of its batch and the one it was tuned for."""
    first = copy.deepcopy(recipe)
    plan_batch(first, 2)
    left_behind(recipe, position_of(first, 2))
    recipe.train_cfg.max_iters *= 4
    plan_batch_as_before(recipe, devices)
    assert position_of(recipe, devices).optimizer_steps == 400


def test_otherwise_the_batch_is_planned_as_usual(recipe):
    left_behind(recipe, position(4, accumulation=2))
    asked, expected = copy.deepcopy(recipe), copy.deepcopy(recipe)
    assert plan_batch_as_before(asked, 2, global_batch=16) == plan_batch(expected, 2, global_batch=16)
    same, expected = copy.deepcopy(recipe), copy.deepcopy(recipe)
    assert plan_batch_as_before(same, 4) == plan_batch(expected, 4)
    fresh, expected = copy.deepcopy(recipe), copy.deepcopy(recipe)
    fresh.resume = False
    assert plan_batch_as_before(fresh, 2) == plan_batch(expected, 2)


def test_the_position_in_the_checkpoint_to_resume_is_found(recipe, trained, tmp_path):
    assert position_to_resume(recipe) is None
    was = position(4)
    left_behind(recipe, was)
    assert position_to_resume(recipe) == was
    work_dir = tmp_path / 'work'
    (work_dir / 'last_checkpoint').unlink()
    assert position_to_resume(recipe) == was
    shutil.copy(f'{trained[0].work_dir}/iter_3.pth', work_dir)
    recipe.load_from = str(work_dir / 'iter_3.pth')
    assert position_to_resume(recipe) == Position(1, 2, 2, 2, 6, 24, 0, optim_wrapper='OptimWrapper')
    for content in (b'nothing', b''):
        (work_dir / 'iter_3.pth').write_bytes(content)
        assert position_to_resume(recipe) is None
    torch.save(dict(meta=dict(position=Counted())), work_dir / 'iter_3.pth')
    assert position_to_resume(recipe) is None
    recipe.load_from = 'https://example.org/iter_3.pth'
    assert position_to_resume(recipe) is None


def test_a_damaged_checkpoint_leaves_the_batch_to_the_one_before(recipe):
    left_behind(recipe, position(4))
    for name in ('iter_20.pth', 'last_checkpoint'):
        (Path(recipe.work_dir) / name).write_bytes(f'{recipe.work_dir}/iter_20.pth'.encode())
    assert position_to_resume(recipe) == position(4)
    (Path(recipe.work_dir) / 'last_checkpoint').write_text('s3://runs/iter_20.pth')
    assert position_to_resume(recipe) is None
