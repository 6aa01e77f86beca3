"""The hooks of the recipes: which, with what arguments, in what order, and that keys change nothing but who can add."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import wsbcn_mm.segmentation
import wsbcn_mm.video  # noqa: F401
from tests.tools.tiny_runs import options, recipe, run_tool
from wsbcn_mm.engine.recipe.hooks import OF_MMENGINE

CONFIGS = Path(__file__).parents[2] / 'configs'
RECIPES = sorted(file for file in CONFIGS.glob('*/*.py') if file.parent.name != '_base_')

OURS = [
    ('VERY_HIGH', 'CheckpointGuardHook'),
    ('VERY_HIGH', 'ClassGuardHook'),
    ('VERY_HIGH', 'EvaluationPaddingHook'),
    ('VERY_HIGH', 'NormReportHook'),
    ('VERY_HIGH', 'DeterministicHook'),
    ('VERY_HIGH', 'LoaderMemoryHook'),
    ('VERY_HIGH', 'StandardizedWeightHook'),
    ('VERY_HIGH', 'IterationSeedHook'),
    ('VERY_HIGH', 'ResumePositionHook'),
    ('VERY_HIGH', 'ActivationMemoryHook'),
    ('HIGH', 'NonFiniteHook'),
    ('ABOVE_NORMAL', 'StepStatisticsHook'),
    ('ABOVE_NORMAL', 'StatisticsMergeHook'),
    ('NORMAL', 'AccumulatedGradientsHook'),
    ('LOW', 'DataSpeedHook'),
    ('LOWEST', 'LoaderWatchdogHook'),
]
"""As the list `custom_hooks` of every recipe had them, in the order in which a Runner calls them."""

AROUND = ['RuntimeInfoHook', 'IterTimerHook', 'DistSamplerSeedHook', 'LoggerHook', 'ParamSchedulerPerStepHook']
"""Of mmengine, or in the place of one of its own."""


def hooks_of(cfg):
    """(priority, name) of the hooks that a Runner makes of a config, in the order in which it calls them."""
    runner = Runner.__new__(Runner)
    runner._hooks = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner.register_hooks(cfg.default_hooks, cfg.get('custom_hooks'))
    return [(hook.priority, type(hook).__name__) for hook in runner.hooks]


@pytest.mark.parametrize('file', RECIPES, ids=lambda file: file.stem)
def test_every_recipe_has_the_hooks_of_before_the_keys_in_the_same_order(file):
    cfg = Config.fromfile(file)
    assert 'custom_hooks' not in cfg
    in_order = hooks_of(cfg)
    names = [name for _, name in in_order]
    checks_norms = file.parent.name in ('deeplabv3', 'deeplabv3plus')
    others = [*AROUND, 'SafeCheckpointHook', *(['NormCheckHook'] if checks_norms else [])]
    assert [entry for entry in in_order if entry[1] not in others] == OURS
    assert sorted(names) == sorted([*others, *(name for _, name in OURS)])
    assert [name for name in names if name in AROUND] == AROUND
    assert in_order[-2] == ('VERY_LOW', 'SafeCheckpointHook')
    if checks_norms:
        assert ('VERY_HIGH', 'NormCheckHook') in in_order
    ours = {key: hook for key, hook in cfg.default_hooks.items() if key not in OF_MMENGINE}
    assert all(set(hook) == {'type'} for hook in ours.values())


@pytest.mark.parametrize('task', ['segmentation', 'video'])
def test_hooks_by_key_print_the_losses_that_a_list_of_them_prints(task, tiny_data, tmp_path):
    as_list = Config.fromfile(recipe(task))
    as_list.custom_hooks = [
        as_list.default_hooks.pop(key) for key in [*as_list.default_hooks] if key not in OF_MMENGINE
    ]
    as_list.dump(str(tmp_path / 'as_list.py'))
    logged = []
    for name, file in (('keys', recipe(task)), ('list', tmp_path / 'as_list.py')):
        short = options(task, tiny_data, 4)
        off = [
            f'default_hooks.{key}=None' for key in ('checkpoint_guard', 'step_statistics', 'non_finite', 'norm_report')
        ]
        run_tool('train.py', file, '--work-dir', tmp_path / name, *short, *(off if name == 'list' else []))
        (scalars,) = (tmp_path / name).glob('*/vis_data/scalars.json')
        logged.append([json.loads(line) for line in scalars.read_text().splitlines()])
    losses, metrics = ([[line.get(key) for line in lines] for lines in logged] for key in ('loss', 'mIoU'))
    assert len([loss for loss in losses[0] if loss is not None]) == 4
    assert losses[0] == losses[1]
    assert metrics[0] == metrics[1]
