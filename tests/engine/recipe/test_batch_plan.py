"""Batch plans of recipes, and Runners that train with them as with one batch without accumulation."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import wsbcn_mm.engine.hooks  # noqa: F401  registers the hook
from wsbcn_mm.engine.recipe.batch_plan import plan_batch, world_size
from wsbcn_mm.layers import WSConv2d

CONFIGS = Path(__file__).parents[3] / 'configs'
VOC = 'deeplabv3/deeplabv3_r101-d16_bcnsync-ws_8xb2-acc1-33k_voc12aug-513x513.py'
VOC_ACCUMULATED = 'deeplabv3/deeplabv3_r101-d16_bcn-ws_1xb1-acc16-33k_voc12aug-513x513.py'
KINETICS = 'resnet3d/r3d-18_bn_8xb2-acc4-188k_kinetics400-16x4x1-112x112.py'
WARM_UP_AND_POLY = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=4, by_epoch=False),
    dict(type='PolyLR', power=0.9, eta_min=1e-4, begin=4, end=10, by_epoch=False),
]
DROPS = [dict(type='MultiStepLR', milestones=[3, 7], gamma=0.1, by_epoch=False)]


def recipe(name):
    return Config.fromfile(CONFIGS / name)


def iteration_recipe(schedulers=WARM_UP_AND_POLY, **changed):
    """Ten optimizer steps of four samples."""
    return Config(
        dict(
            train_dataloader=dict(batch_size=4),
            auto_scale_lr=dict(base_batch_size=4, rule='linear', enable=False),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=1e-4)),
            param_scheduler=copy.deepcopy(schedulers),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=10, val_interval=5),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5)),
        )
        | changed
    )


def epoch_recipe(*schedulers):
    loop = dict(by_epoch=True, max_epochs=12, val_interval=2)
    saving = dict(checkpoint=dict(type='CheckpointHook', interval=3))
    return iteration_recipe(schedulers, train_cfg=loop, default_hooks=saving)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('[!_]*/*.py')), ids=lambda path: path.stem)
def test_the_base_batch_of_a_recipe_is_that_of_its_name(path):
    devices, per_device, accumulation = map(int, re.search(r'_(\d+)xb(\d+)-acc(\d+)-', path.name).groups())
    (schedule,) = re.findall(r"'\.\./(_base_/schedules/[^']+)'", path.read_text())
    scaling = recipe_of(schedule).auto_scale_lr
    assert scaling == dict(base_batch_size=devices * per_device * accumulation, rule='linear', enable=False)


SCHEDULES: dict[str, Config] = {}


def recipe_of(name):
    if name not in SCHEDULES:
        SCHEDULES[name] = recipe(name)
    return SCHEDULES[name]


def test_without_flags_and_on_the_recipes_devices_nothing_changes():
    cfg = recipe(VOC)
    before = cfg.to_dict()
    lines = plan_batch(cfg, 8)
    assert lines[0] == 'batch plan: effective batch 16 = 8 device(s) x 2 x accumulation 1'
    assert not any('tuned for' in line for line in lines)
    after = cfg.to_dict()
    plan = after.pop('batch_plan')
    assert after == before
    assert plan['recipe'] == plan['run']
    assert plan['run'] == dict(
        effective_batch=16,
        per_device=2,
        accumulation=1,
        learning_rate=0.007,
        iterations=33_100,
        optimizer_steps=33_100,
        samples=529_600,
        warm_up_steps=0,
        schedule_ends_steps=[33_100],
        val_interval=3_310,
        checkpoint_interval=3_310,
    )


def test_on_fewer_devices_the_recipes_numbers_stay_and_one_line_reports_the_effect():
    cfg = recipe(VOC)
    before = cfg.to_dict()
    assert plan_batch(cfg, 1)[-1] == (
        'effective batch 2, but the recipe is tuned for 16: the learning rate stays 0.007, 33100 iterations process '
        '66200 samples instead of 529600; --global-batch 16 restores the batch of the recipe'
    )
    after = cfg.to_dict()
    del after['batch_plan']
    assert after == before


@pytest.mark.parametrize(
    ('devices', 'advice'),
    [
        (3, 'global batch 16 is not a multiple of 3 device(s) x 2 = 6: the nearest are 12 and 18'),
        (4, '--global-batch 16 restores the batch of the recipe'),
    ],
)
def test_what_the_line_advises_can_be_done(devices, advice):
    line = plan_batch(recipe(VOC), devices)[-1]
    assert line.startswith(
        f'effective batch {2 * devices}, but the recipe is tuned for 16: the learning rate stays 0.007, '
    )
    assert line.endswith(f'; {advice}')


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        (
            {'train_cfg.max_iters': 10},
            'is scheduled for 33100 optimizer steps, but this run has 10: the schedule is',
        ),
        (
            {'optim_wrapper.accumulative_counts': 3},
            'is scheduled for 33100 optimizer steps, but this run has 11034',
        ),
        ({'train_cfg.max_iters': 40_000}, 'but this run has 40000: it is constant from step 33100 on'),
        ({'param_scheduler': [dict(type='LinearLR', end=90_000, by_epoch=False)]}, 'is scheduled for 90000 optimizer'),
        ({'param_scheduler': [dict(type='LinearLR', end=500, by_epoch=False)]}, None),
        ({'param_scheduler': [dict(type='MultiStepLR', milestones=[9], by_epoch=False)]}, None),
    ],
    ids=['shorter run', 'accumulation', 'longer run', 'long warm-up', 'only warm-up', 'no end'],
)
def test_a_schedule_that_is_not_as_long_as_the_run_is_reported(changes, expected):
    cfg = recipe(VOC)
    cfg.merge_from_dict(changes)
    reported = [line for line in plan_batch(cfg, 8) if line.startswith('the learning rate is scheduled for ')]
    assert len(reported) == (expected is not None)
    assert all(expected in line and line.endswith("(set 'end' in param_scheduler)") for line in reported)


@pytest.mark.parametrize('name', [VOC, VOC_ACCUMULATED])
def test_a_global_batch_is_accumulated_where_devices_are_few(name):
    cfg = recipe(name)
    plan_batch(cfg, 1, global_batch=16, per_device=1)
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.accumulative_counts) == (1, 16)
    assert cfg.optim_wrapper.optimizer.lr == 0.007
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (529_600, 52_960)
    assert cfg.default_hooks.checkpoint.interval == 52_960
    assert [one.end for one in cfg.param_scheduler] == [33_100]
    assert cfg.default_hooks.param_scheduler == dict(type='ParamSchedulerPerStepHook')
    assert cfg.batch_plan.run.samples == cfg.batch_plan.recipe.samples == 529_600


def test_per_device_without_global_batch_keeps_the_recipes_batch():
    cfg = recipe(VOC)
    plan_batch(cfg, 2, per_device=4)
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.accumulative_counts) == (4, 2)
    assert (cfg.batch_plan.run.effective_batch, cfg.train_cfg.max_iters) == (16, 66_200)


def test_an_accumulating_recipe_becomes_one_that_does_not():
    cfg, goal = recipe(VOC_ACCUMULATED), recipe(VOC)
    plan_batch(cfg, 8, per_device=2)
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'default_hooks'):
        assert cfg[key] == goal[key], key


def test_another_global_batch_scales_rate_and_length_by_the_recipes_rule():
    cfg = recipe(KINETICS)
    lines = plan_batch(cfg, 4, global_batch=16, per_device=2)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.01 / 4)
    (drops,) = cfg.param_scheduler
    assert (drops.milestones, drops.end) == ([4 * 75_200, 4 * 150_400], 4 * 188_000)
    assert cfg.batch_plan.run.optimizer_steps == 4 * 188_000
    assert cfg.batch_plan.run.lr_drops_steps == [4 * 75_200, 4 * 150_400]
    assert cfg.train_cfg.max_iters == 8 * 188_000
    assert cfg.batch_plan.run.samples == cfg.batch_plan.recipe.samples == 64 * 188_000
    assert cfg.auto_scale_lr.base_batch_size == 16
    rows = [line.split() for line in lines]
    assert ['effective', 'batch', '64', '16'] in rows
    assert ['learning', 'rate', '0.01', '0.0025'] in rows


@pytest.mark.parametrize(('rule', 'factor'), [('linear', 2), ('sqrt', 2**0.5), ('constant', 1)])
def test_bounds_of_the_learning_rate_follow_it(rule, factor):
    cfg = iteration_recipe(auto_scale_lr=dict(base_batch_size=4, rule=rule))
    plan_batch(cfg, 1, global_batch=8)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.04 * factor)
    assert cfg.param_scheduler[1].eta_min == pytest.approx(1e-4 * factor)
    assert [(one.begin, one.end) for one in cfg.param_scheduler] == [(0, 2), (2, 5)]


def test_a_planned_config_can_be_planned_again():
    cfg, direct = recipe(VOC), recipe(VOC)
    plan_batch(cfg, 1, global_batch=16, per_device=1)
    plan_batch(cfg, 4, global_batch=8, per_device=1)
    plan_batch(direct, 4, global_batch=8, per_device=1)
    assert cfg.batch_plan.run == direct.batch_plan.run
    assert cfg.param_scheduler == direct.param_scheduler
    assert not any('tuned for' in line for line in plan_batch(cfg, 4))


def test_enabled_scaling_counts_accumulation_and_is_not_left_to_mmengine():
    cfg = iteration_recipe(auto_scale_lr=dict(base_batch_size=4, enable=True))
    cfg.optim_wrapper.accumulative_counts = 2
    line = plan_batch(cfg, 1)[-1]
    assert line.startswith(
        'effective batch 8, but the recipe is tuned for 4: the learning rate changes from 0.04 to 0.08'
    )
    assert cfg.optim_wrapper.optimizer.lr == 0.08
    assert cfg.auto_scale_lr == dict(base_batch_size=8, enable=False)


def test_epochs_stay_epochs_and_a_warm_up_in_iterations_does_not():
    warm_up = dict(type='LinearLR', start_factor=0.1, begin=0, end=40, by_epoch=False)
    cfg = epoch_recipe(warm_up, dict(type='MultiStepLR', milestones=[8, 11], by_epoch=True))
    plan_batch(cfg, 2, global_batch=8, per_device=1)
    assert cfg.train_cfg == dict(by_epoch=True, max_epochs=12, val_interval=2)
    assert cfg.default_hooks.checkpoint.interval == 3
    assert cfg.param_scheduler[0].end == 20
    assert cfg.param_scheduler[1] == dict(type='MultiStepLR', milestones=[8, 11], by_epoch=True)
    assert (cfg.train_dataloader.batch_size, cfg.optim_wrapper.accumulative_counts) == (1, 4)
    assert cfg.batch_plan.run == dict(
        effective_batch=8,
        per_device=1,
        accumulation=4,
        learning_rate=0.08,
        epochs=12,
        warm_up_steps=20,
        val_interval=2,
        checkpoint_interval=3,
    )


def rejects(cfg, message, **asked):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
        plan_batch(cfg, 1, **(asked or dict(global_batch=8)))


def test_what_cannot_be_planned_is_rejected_by_name():
    nearest = (
        'global batch 6 is not a multiple of 1 device(s) x 4 = 4: the nearest are 4 and 8; 6 itself works with 2 or 3'
    )
    rejects(iteration_recipe(), nearest, global_batch=6)
    rejects(iteration_recipe(), 'samples per device=0: at least 1 is expected', per_device=0)
    rejects(iteration_recipe(), 'LinearLR would last 1 optimizer step(s) at a global batch of 16, ', global_batch=16)
    unknown = '--global-batch and --per-device need the batch that the recipe was tuned for: add --cfg-options'
    rejects(iteration_recipe(auto_scale_lr=None), unknown)
    rejects(iteration_recipe(auto_scale_lr=dict(base_batch_size=4, rule='cubic')), "learning-rate rule='cubic': ")
    rejects(iteration_recipe([dict(type='ExponentialLR', gamma=0.9, by_epoch=False)]), 'ExponentialLR decays in')
    rejects(iteration_recipe(train_dataloader={}), '--global-batch and --per-device need a recipe with train_dataload')
    two = dict(a=dict(optimizer=dict(lr=1)), b=dict(optimizer=dict(lr=1)))
    rejects(iteration_recipe(optim_wrapper=two), '--global-batch and --per-device need a recipe with one optimizer')
    loop = dict(type='IterBasedTrainLoop', max_iters=10, dynamic_intervals=[(5, 1)])
    rejects(iteration_recipe(train_cfg=loop), '--global-batch and --per-device do not convert train_cfg.dynamic_int')
    for scheduler in (
        dict(type='PolyLR', by_epoch=False),
        dict(type='PolyLR', end=12, by_epoch=True, convert_to_iter_based=True),
    ):
        rejects(epoch_recipe(scheduler), 'PolyLR lets mmengine count its iterations', per_device=1)


def test_without_flags_a_recipe_of_another_form_does_not_change():
    for changed in (
        dict(train_dataloader={}),
        dict(optim_wrapper=dict(a=dict(optimizer=dict(lr=1)))),
        dict(train_cfg={}),
    ):
        cfg = iteration_recipe(**changed)
        before = cfg.to_dict()
        assert plan_batch(cfg, 1) == []
        assert cfg.to_dict() == before
    cfg = iteration_recipe(auto_scale_lr=None)
    assert not any('tuned for' in line for line in plan_batch(cfg, 3))
    assert cfg.batch_plan.run.effective_batch == 12


def test_world_size_is_that_of_the_launcher(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '6')
    assert world_size(Config(dict(launcher='pytorch'))) == 6
    assert world_size(Config(dict(launcher='none'))) == 1


class Images(Dataset):
    """Random images, in an order that does not depend on the batch."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, 6, 6, generator=generator, dtype=torch.float64) + index / 10)


class Toy(BaseModel):
    """Norms that treat each sample separately, in float64, because ten steps multiply rounding errors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            WSConv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), WSConv2d(8, 4, 3), nn.GroupNorm(2, 4)
        )
        self.double()

    def init_weights(self):
        """Keep the weights from __init__."""

    def forward(self, inputs, mode='loss'):
        out = self.net(inputs)
        return dict(loss=(out**2 - out).mean() + (out[:, 0] ** 3).mean())


class RatesOfSteps(Hook):
    """Record the learning rate of every optimizer step."""

    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.optim_wrapper.should_update():
            self.seen += runner.optim_wrapper.get_lr()['lr']


def train(folder, cfg):
    """Return the learning rates and the weights of a run."""
    rates, model = RatesOfSteps(), Toy()
    loader = dict(
        dataset=Images(),
        sampler=dict(type='InfiniteSampler', shuffle=False)
        if 'max_iters' in cfg.train_cfg
        else dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    Runner(
        model,
        str(folder),
        train_dataloader=cfg.train_dataloader.to_dict() | loader,
        train_cfg={name: value for name, value in cfg.train_cfg.items() if name != 'val_interval'},
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        default_hooks=cfg.default_hooks.to_dict() | dict(checkpoint=None),
        custom_hooks=[rates],
        # mmengine identifies loggers by experiment and second.
        experiment_name=f'{folder.parent.name}-{folder.name}',
    ).train()
    return rates.seen, [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize('schedulers', [WARM_UP_AND_POLY, DROPS], ids=['poly', 'steps'])
def test_accumulated_micro_batches_train_like_one_batch(schedulers, tmp_path):
    runs = {}
    for per_device in (4, 1):
        cfg = iteration_recipe(schedulers)
        plan_batch(cfg, 1, per_device=per_device)
        runs[per_device] = train(tmp_path / f'b{per_device}', cfg)
    (rates, weights), (accumulated_rates, accumulated_weights) = runs.values()
    assert len(rates) == 10
    assert len({round(rate, 12) for rate in rates}) > 2
    assert accumulated_rates == rates
    start = list(Toy().parameters())
    for before, whole, accumulated in zip(start, weights, accumulated_weights, strict=True):
        assert not torch.allclose(whole, before, atol=1e-4)
        torch.testing.assert_close(accumulated, whole, rtol=0, atol=1e-9)


def test_epochs_accumulate_to_the_same_curve(tmp_path):
    schedulers = (
        dict(type='LinearLR', start_factor=0.1, begin=0, end=4, by_epoch=False),
        dict(type='MultiStepLR', milestones=[1], by_epoch=True),
    )
    rates = []
    for per_device in (4, 2):
        cfg = epoch_recipe(*schedulers)
        cfg.train_cfg.max_epochs = 2
        plan_batch(cfg, 1, per_device=per_device)
        rates.append(train(tmp_path / f'b{per_device}', cfg)[0])
    assert len(rates[0]) == 20
    assert rates[1] == rates[0]
