"""The recipe in a checkpoint: read as data, and reduced to what inference needs."""

import math
import sys

import pytest
from mmengine.config import Config

from tests.tools.tiny_runs import recipe
from wsbcn_mm.engine.inference.recipe_text import (
    config_of_text,
    import_custom_modules,
    inference_config,
    inference_pipeline,
    refuse_functions,
)


@pytest.mark.parametrize('task', ['segmentation', 'video'])
def test_the_text_of_a_recipe_is_the_recipe(task):
    cfg = Config.fromfile(recipe(task))
    assert config_of_text(cfg.pretty_text, 'c.pth').to_dict() == cfg.to_dict()


def test_what_mmengine_writes_of_numbers_tuples_and_other_keys_is_read():
    cfg = Config(
        dict(a=(1,), b=[(2, -3.5), dict(c=None)], d={'0': 1, 'x y': [True]}, e=1e-5, f=math.inf, g=-math.inf, h="it's")
    )
    assert config_of_text(cfg.pretty_text, 'c.pth').to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ("import os\nos.system('touch harm')", 'line 1 is not name = value'),
        (
            "a = 1\nb = __import__('os').system('touch harm')",
            r"line 2 has \"__import__\('os'\).system\('touch harm'\)\"",
        ),
        ("a = dict(b=[open('harm', 'w')])", r"line 1 has \"open\('harm', 'w'\)\""),
        ('a = [x for x in ()]', r"line 1 has '\[x for x in \(\)\]'"),
        ('a = (', r"'\(' was never closed.*"),
    ],
)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=rf'^the recipe in c\.pth is not plain data \({reason}\), and code in a checkpoint does not run: '
        r'give the recipe with --recipe FILE \(recipe= in Python\)$',
    ):
        config_of_text(text, 'c.pth')
    assert not list(tmp_path.iterdir())


def test_modules_of_the_recipe_are_imported_or_named(tmp_path, monkeypatch):
    (tmp_path / 'own_layers.py').write_text('')
    cfg = Config(dict(custom_imports=dict(imports=['own_layers'], allow_failed_imports=False)))
    with pytest.raises(
        ImportError,
        match=r"^c\.pth: its recipe imports 'own_layers', which this Python does not find \(No module .*\): "
        r'put the folder of that module on PYTHONPATH$',
    ):
        import_custom_modules(cfg, 'c.pth')
    cfg.custom_imports.allow_failed_imports = True
    import_custom_modules(cfg, 'c.pth')
    monkeypatch.syspath_prepend(tmp_path)
    import_custom_modules(cfg, 'c.pth')
    assert 'own_layers' in sys.modules
    import_custom_modules(Config(dict(custom_imports=dict(imports=['folded_segmentor']))), 'c.pth')


@pytest.mark.parametrize('kind', ['os.system', 'subprocess.Popen', 'mmengine.dump', 'mmengine.Config', 'no_such.thing'])
def test_a_type_that_mmengine_would_call_is_refused(kind):
    cfg = Config(dict(model=dict(type='EncoderDecoder', backbone=[dict(type=kind, command='touch harm')])))
    with pytest.raises(
        ValueError,
        match=rf"^the recipe in c\.pth has type='{kind}': the name of a layer or a transform is expected; if you ",
    ):
        refuse_functions(cfg, 'c.pth')


def test_layers_and_transforms_may_have_paths_and_scopes():
    kinds = [
        'torch.nn.ReLU',
        'mmseg.EncoderDecoder',
        'mmcv.transforms.Resize',
        'mmcv.transforms.loading.LoadImageFromFile',
    ]
    refuse_functions(Config(dict(model=[dict(type=kind) for kind in kinds])), 'c.pth')


def test_the_pipeline_is_that_of_the_test_without_labels():
    steps = [
        dict(type=kind) for kind in ('LoadImage', 'LoadStrictLabels', 'Resize', 'LoadAnnotations', 'PackSegInputs')
    ]
    kept = [dict(type=kind) for kind in ('LoadImage', 'Resize', 'PackSegInputs')]
    inner = dict(type='BaseSegDataset', pipeline=steps)
    for dataset in (inner, dict(datasets=[inner]), dict(type='RepeatDataset', dataset=inner)):
        assert inference_pipeline(Config(dict(test_dataloader=dict(dataset=dataset)))) == kept
    assert inference_pipeline(Config(dict(test_pipeline=steps))) == kept
    with pytest.raises(
        ValueError, match=r'^the recipe has no test pipeline: test_dataloader.dataset.pipeline or test_p'
    ):
        inference_pipeline(Config(dict(model=dict())))


def test_the_reduced_recipe_starts_from_no_file():
    model = dict(
        pretrained='a.pth', train_cfg=dict(), backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='a.pth'))
    )
    cfg = Config(
        dict(default_scope='mmseg', model=model, test_pipeline=[dict(type='PackSegInputs')], work_dir='here', seed=0)
    )
    assert inference_config(cfg).to_dict() == dict(
        default_scope='mmseg', model=dict(backbone=dict(init_cfg=None)), test_pipeline=[dict(type='PackSegInputs')]
    )
    assert cfg.model.pretrained == 'a.pth'
