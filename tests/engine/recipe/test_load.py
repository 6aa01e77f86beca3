"""The command line does to a recipe what it says, and a recipe that cannot work is refused by name."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from wsbcn_mm.engine.recipe.checks import check_recipe
from wsbcn_mm.engine.recipe.hooks import add_guards, save_pictures
from wsbcn_mm.engine.recipe.load import changes_of, load_checkpoint_into, load_recipe, parse_options, resume_from
from wsbcn_mm.engine.recipe.tree import dicts_in, drop_pretrained

TINY = Path(__file__).parents[3] / 'configs' / 'tiny'
RECIPE = "default_scope = 'mmseg'\nmodel = dict(depth=18, out_indices=(0, 1))\noptim_wrapper = dict(lr=0.1)\n"


def exactly(text):
    return f'^{re.escape(text)}$'


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / 'r3d-18_bcn-ws_8xb1.py'
    path.write_text(RECIPE)
    return path


def test_options_change_the_recipe_with_mmengines_types(recipe):
    options = ['model.depth=50', 'model.out_indices=(2,3)', 'optim_wrapper.lr=-1e-3', 'randomness.seed=3']
    cfg = load_recipe(str(recipe), options=options)
    assert (cfg.model.depth, cfg.optim_wrapper.lr, cfg.randomness.seed) == (50, -1e-3, 3)
    assert tuple(cfg.model.out_indices) == (2, 3)
    assert Config.fromfile(recipe).model.depth == 18


@pytest.mark.parametrize(
    ('work_dir', 'own', 'expected'),
    [
        ('given', 'own', 'given'),
        (None, 'own', 'own'),
        (None, None, 'work_dirs/r3d-18_bcn-ws_8xb1'),
    ],
)
def test_work_dir_comes_from_the_command_line_then_the_recipe_then_its_name(recipe, work_dir, own, expected):
    if own:
        recipe.write_text(f'{RECIPE}work_dir = {own!r}\n')
    assert load_recipe(str(recipe), work_dir=work_dir).work_dir == expected


def test_what_the_command_line_changed_is_told(recipe):
    cfg = load_recipe(recipe, work_dir='here')
    assert changes_of(cfg, str(recipe)).splitlines()[3:] == ["+work_dir = 'here'"]


def test_an_option_that_nothing_knows_is_refused_with_a_suggestion(recipe):
    message = "--cfg-options 'modle.depth=50': neither the recipe nor the Runner has 'modle'; did you mean 'model'?"
    with pytest.raises(ValueError, match=exactly(message)):
        load_recipe(str(recipe), options=['model.depth=34', 'modle.depth=50'])
    with pytest.raises(ValueError, match=exactly("--cfg-options 'zzz=1': neither the recipe nor the Runner has 'zzz'")):
        load_recipe(str(recipe), options=['zzz=1'])


def test_a_variable_that_was_copied_is_refused_with_the_places_of_its_copies(tmp_path):
    file = tmp_path / 'recipe.py'
    file.write_text(
        "norm_cfg = dict(type='BCN')\nmine = dict(type='BCN', of=1)\n"
        'model = dict(backbone=dict(norm_cfg=norm_cfg), heads=[dict(norm_cfg=norm_cfg)])\n'
    )
    message = (
        '--cfg-options norm_cfg.type: norm_cfg is a variable of the recipe, whose value was copied when the file was '
        'read. Change the copies: model.backbone.norm_cfg, model.heads.0.norm_cfg'
    )
    with pytest.raises(ValueError, match=exactly(message)):
        load_recipe(str(file), options=['norm_cfg.type=GN'])
    cfg = load_recipe(str(file), options=['model.heads.0.norm_cfg.type=GN', 'mine.of=2'])
    assert (cfg.model.heads[0].norm_cfg.type, cfg.model.backbone.norm_cfg.type, cfg.mine.of) == ('GN', 'BCN', 2)


def test_an_option_without_a_value_is_refused():
    with pytest.raises(ValueError, match=exactly("--cfg-options 'model.depth': KEY=VALUE is expected")):
        parse_options(['model.depth'], known={'model'})


@pytest.mark.parametrize('key', ['sync_bn', 'find_unused_parameters', 'auto_scale_lr', 'compile', 'val_cfg'])
def test_what_a_runner_looks_up_may_be_set_though_no_recipe_has_it(recipe, key):
    assert load_recipe(str(recipe), options=[f'{key}=torch'])[key] == 'torch'


def test_a_recipe_that_is_not_there_is_named_with_similar_ones(recipe):
    missing = recipe.with_name('r3d-18_bcn-ws_8xb2.py')
    (recipe.parent / 'another_model.py').write_text('')
    message = f'recipe {str(missing)!r} does not exist; that folder has {recipe.name}'
    with pytest.raises(FileNotFoundError, match=exactly(message)):
        load_recipe(str(missing))
    with pytest.raises(FileNotFoundError, match=exactly("recipe 'no/such.py' does not exist")):
        load_recipe('no/such.py')


def test_resume_takes_a_file_or_the_last_of_the_work_dir(tmp_path):
    cfg = Config(dict(load_from='elsewhere.pth', resume=False))
    resume_from(cfg, None)
    assert (cfg.resume, cfg.load_from) == (False, 'elsewhere.pth')
    resume_from(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, None)
    file = tmp_path / 'iter_4.pth'
    file.touch()
    resume_from(cfg, str(file))
    assert (cfg.resume, cfg.load_from) == (True, str(file))
    with pytest.raises(FileNotFoundError, match=exactly(f"checkpoint '{tmp_path}' is a folder: name a file in it")):
        resume_from(cfg, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=exactly("checkpoint 'gone.pth' does not exist")):
        resume_from(cfg, 'gone.pth')


def test_evaluation_loads_the_checkpoint_and_looks_for_no_other_weights(tmp_path):
    file = tmp_path / 'iter_4.pth'
    file.touch()
    init = dict(type='Pretrained', checkpoint='gone.pth')
    cfg = Config(dict(resume=True, model=dict(backbone=dict(init_cfg=init))))
    load_checkpoint_into(cfg, str(file))
    assert (cfg.load_from, cfg.resume, cfg.model.backbone.init_cfg) == (str(file), False, None)
    check_recipe(cfg)
    load_checkpoint_into(cfg, 'https://example.org/a.pth')
    assert cfg.load_from == 'https://example.org/a.pth'
    with pytest.raises(FileNotFoundError, match=exactly("checkpoint 'gone.pth' does not exist")):
        load_checkpoint_into(cfg, 'gone.pth')


@pytest.mark.parametrize('kind', ['Pretrained', 'Inflated2d'])
def test_missing_pretrained_weights_are_said_before_anything_is_built(kind):
    init = dict(type=kind, checkpoint='pretrained/resnet50_gn_ws.pth')
    cfg = Config(dict(model=dict(head=[dict(type='Head')], backbone=dict(init_cfg=init))))
    message = (
        "the recipe starts from pretrained weights 'pretrained/resnet50_gn_ws.pth', and there is no such file. "
        'Put it there (docs/pretrained.md says where it comes from), or start from random weights with --from-scratch'
    )
    with pytest.raises(FileNotFoundError, match=exactly(message)):
        check_recipe(cfg)
    drop_pretrained(cfg)
    check_recipe(cfg)


def test_pretrained_weights_that_are_there_or_fetched_by_the_host_pass(tmp_path):
    file = tmp_path / 'weights.pth'
    file.touch()
    for checkpoint in (str(file), 'torchvision://resnet18'):
        check_recipe(Config(dict(model=dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint)))))


def test_dropping_pretrained_weights_keeps_every_other_initialisation():
    start = dict(type='Pretrained', checkpoint='a.pth')
    normal = dict(type='Normal', std=0.01)
    model = dict(init_cfg=start, backbone=dict(init_cfg=[normal, start]), heads=[dict(init_cfg=normal)])
    cfg = Config(dict(model=model))
    drop_pretrained(cfg)
    assert cfg.model == dict(init_cfg=None, backbone=dict(init_cfg=[normal]), heads=[dict(init_cfg=normal)])


def test_sync_bn_conversion_of_a_model_with_bcn_is_refused():
    model = dict(backbone=dict(norm_cfg=dict(type='BCN', num_groups=32)))
    message = "sync_bn='torch' does not reach BCN: set statistics='sync' in its norm_cfg instead"
    with pytest.raises(ValueError, match=exactly(message)):
        check_recipe(Config(dict(sync_bn='torch', model=model)))
    check_recipe(Config(dict(model=model)))
    check_recipe(Config(dict(sync_bn='torch', model=dict(backbone=dict(norm_cfg=dict(type='BN'))))))


@pytest.mark.parametrize(('scope', 'hook'), [('mmseg', 'OverlayHook'), ('mmengine', 'ClipStripHook')])
def test_pictures_come_from_the_hook_of_the_task(scope, hook):
    cfg = Config(dict(default_scope=scope, custom_hooks=[dict(type='NormReportHook')]))
    save_pictures(cfg, 'out', 7)
    assert cfg.custom_hooks == [dict(type='NormReportHook'), dict(type=hook, out_dir='out', max_images=7)]


def test_pictures_of_another_task_are_refused():
    message = "default_scope='mmdet': 'mmseg' (segmentation) or 'mmengine' (video) is expected"
    with pytest.raises(ValueError, match=exactly(message)):
        save_pictures(Config(dict(default_scope='mmdet')), 'out', 7)


def test_dicts_in_visits_every_dict_once_the_outermost_first():
    tree = dict(name='a', x=[dict(name='b'), (dict(name='c', y=dict(name='d')),)], z=3)
    assert [node['name'] for node in dicts_in(tree)] == ['a', 'b', 'c', 'd']


def test_a_key_set_to_none_switches_its_hook_off_and_stays_off(tmp_path):
    recipe = next(TINY.glob('*.py'))
    off = ['default_hooks.norm_report=None', 'default_hooks.non_finite=None', 'default_hooks.logger=None']
    cfg = load_recipe(str(recipe), options=off)
    assert not {'norm_report', 'non_finite'} & set(cfg.default_hooks)
    assert cfg.default_hooks.logger is None  # a key of mmengine's own, which knows what None means
    assert add_guards(cfg) == []
    cfg.dump(str(tmp_path / 'dumped.py'))
    again = load_recipe(str(tmp_path / 'dumped.py'))
    assert again.switched_off_hooks == ['norm_report', 'non_finite']
    assert add_guards(again) == []


def test_hooks_of_ones_own_add_to_those_of_a_recipe(tmp_path):
    recipe = next(TINY.glob('*.py'))
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = {str(recipe)!r}\ncustom_hooks = [dict(type='EMAPerStepHook')]\n")
    cfg, base = load_recipe(str(child)), load_recipe(str(recipe))
    assert cfg.default_hooks == base.default_hooks
    assert cfg.custom_hooks == [dict(type='EMAPerStepHook')]


def test_a_config_without_the_guards_gets_them_in_one_line(tmp_path):
    file = tmp_path / 'stock.py'
    file.write_text(
        "default_hooks = dict(timer=dict(type='IterTimerHook'), norm_report=None)\n"
        "custom_hooks = [dict(type='NonFiniteHook')]\n"
    )
    cfg = load_recipe(str(file))
    assert add_guards(cfg) == [
        'default_hooks lacks checkpoint_guard, step_statistics: added; to switch one off: '
        'default_hooks.checkpoint_guard=None'
    ]
    assert list(cfg.default_hooks) == ['timer', 'checkpoint_guard', 'step_statistics']
    assert cfg.custom_imports == dict(imports=['wsbcn_mm.engine.hooks'], allow_failed_imports=False)
    assert add_guards(cfg) == []


def test_every_tiny_recipe_passes_the_check():
    paths = sorted(TINY.glob('*.py'))
    assert paths
    for path in paths:
        check_recipe(load_recipe(str(path)))
