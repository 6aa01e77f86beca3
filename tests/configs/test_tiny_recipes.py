"""Every recipe of the demo parses, builds, and is what its name says; the demo has every combination."""

import re
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, METRICS, MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

import wsbcn_mm.segmentation  # noqa: F401  registers the modules
from projects.toy_data.clips import video_classes
from projects.common.tiny_recipes import find_recipe
from projects.micro_batch_demo.run import NORMS, SAMPLES, SETTINGS
from projects.toy_data.data import CLIPS, SCENES
from projects.common.tiny_recipes import MODELS as DEMO_MODELS
from wsbcn_mm.surgery.kinds import count_convs, count_norms
from wsbcn_mm.video.data.samples import ClipDataSample

FOLDER = Path(__file__).parents[2] / 'configs' / 'tiny'
RECIPES = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
NAME = re.compile(
    r'(?P<model>deeplabv3_r18-tiny|r3d-18-tiny)_(?P<norm>bn|gn|gn-ws|bcn-ws)'
    r'_1xb(?P<per_device>\d+)-acc(?P<accumulation>\d+)-(?P<steps>[\d.]+k?)'
    r'_(?P<dataset>digits|motion)-(?:(?P<frames>\d+)x)?(?P<side>\d+)x(?P=side)'
)
TASKS = {model: task for task, model in DEMO_MODELS.items()}
NORM_KIND = {'bn': 'BN', 'gn': 'GN', 'gn-ws': 'GN', 'bcn-ws': 'BCN'}

# Convolutions that a norm follows. Segmentation: stem, 16 of the blocks, 3 projections and, of the head, three ASPP
# branches and the bottleneck. Video, three stages: stem, 12 of the blocks, 2 projections.
WITH_NORM = {'segmentation': 1 + 16 + 3 + 3 + 1, 'video': 1 + 12 + 2}
# Plain whatever the recipe: of segmentation the classifier and the image pooling branch, which has no norm.
WITHOUT_NORM = {'segmentation': 2, 'video': 0}


def parse(recipe):
    match = NAME.fullmatch(recipe)
    assert match, f'{recipe} does not follow the naming scheme'
    name = match.groupdict()
    steps = name['steps']
    numbers = dict(
        per_device=int(name['per_device']),
        accumulation=int(name['accumulation']),
        steps=round(float(steps[:-1]) * 1000) if steps.endswith('k') else int(steps),
    )
    return name | numbers | dict(task=TASKS[name['model']])


@cache
def load(recipe):
    return Config.fromfile(RECIPES[recipe])


def build(recipe):
    cfg = load(recipe)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('recipe', RECIPES)
def test_layers_are_what_the_name_says(recipe):
    name, model = parse(recipe), build(recipe)
    convs, plain = WITH_NORM[name['task']], WITHOUT_NORM[name['task']]
    expected = Counter(WS=convs, plain=plain) if name['norm'].endswith('-ws') else Counter(plain=convs + plain)
    assert count_convs(model) == expected
    assert count_norms(model) == Counter({NORM_KIND[name['norm']]: convs})
    if name['task'] == 'segmentation':
        assert type(model.decode_head.conv_seg) is nn.Conv2d
        assert model.num_classes == len(load(recipe).metainfo.classes) == len(SCENES['digits']) + 1
    else:
        assert model.head.fc.out_features == len(video_classes())


@pytest.mark.parametrize('recipe', RECIPES)
def test_batch_and_length_are_what_the_name_says(recipe):
    name, cfg = parse(recipe), load(recipe)
    assert name['per_device'] * name['accumulation'] * name['steps'] == SAMPLES
    micro_batches = name['steps'] * name['accumulation']
    assert cfg.train_dataloader.batch_size == name['per_device']
    assert cfg.optim_wrapper.accumulative_counts == name['accumulation']
    assert cfg.train_cfg.max_iters == micro_batches
    assert max(scheduler.end for scheduler in cfg.param_scheduler) == name['steps']
    assert cfg.default_hooks.param_scheduler == dict(type='ParamSchedulerPerStepHook')
    assert cfg.default_hooks.checkpoint.interval == micro_batches
    # The demo's curves and its count of samples come from the log: the last iteration has to be in it.
    assert micro_batches % cfg.default_hooks.logger.interval == 0
    assert micro_batches % cfg.train_cfg.val_interval == 0
    assert name['accumulation'] == 1 or cfg.train_cfg.val_interval % name['accumulation'] == 0


@pytest.mark.parametrize('recipe', RECIPES)
def test_data_and_parts_are_what_the_name_says(recipe):
    name, cfg = parse(recipe), load(recipe)
    dataset = {'segmentation': 'digits', 'video': 'motion'}[name['task']]
    assert name['dataset'] == dataset
    assert int(name['side']) == (SCENES['size'] if dataset == 'digits' else CLIPS['size'])
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root.startswith('data/micro_batch_demo/')
        if name['frames']:
            assert loader.dataset.pipeline[0].sampler == dict(type='segments', num_segments=int(name['frames']))
    assert 'NormReportHook' in [hook.type for hook in cfg.default_hooks.values()]
    init_default_scope(cfg.default_scope)
    with HOOKS.switch_scope_and_registry(None) as registry:
        assert all(registry.get(hook.type) for hook in cfg.default_hooks.values())
    with METRICS.switch_scope_and_registry(None) as registry:
        assert registry.get(cfg.val_evaluator.type)


@pytest.mark.parametrize('recipe', RECIPES)
def test_header_has_the_command(recipe):
    text = RECIPES[recipe].read_text()
    assert f'python tools/train.py configs/tiny/{recipe}.py\n' in text.split('"""')[1]
    assert len(text.splitlines()) <= 20


def test_every_task_has_every_norm_in_every_setting_once():
    have = [(n['task'], n['norm'], f'1xb{n["per_device"]}-acc{n["accumulation"]}') for n in map(parse, RECIPES)]
    assert sorted(have) == sorted(product(DEMO_MODELS, NORMS, SETTINGS))
    for task, norm, setting in have:
        assert find_recipe(task, norm, setting).stem in RECIPES


def test_norms_of_a_task_differ_in_nothing_but_the_norm_and_the_rate():
    """Same data, loss, schedule shape and optimizer; same parameters but for those of the norms."""
    seen = {}
    for recipe in RECIPES:
        name, cfg = parse(recipe), load(recipe)
        shared = {key: cfg[key] for key in ('train_dataloader', 'val_dataloader', 'param_scheduler', 'train_cfg')}
        optimizer = {k: v for k, v in cfg.optim_wrapper.optimizer.items() if k not in ('lr', 'weight_decay')}
        model = build(recipe)
        weights = {n: tuple(p.shape) for n, p in model.named_parameters() if p.ndim > 1}
        setting = (name['task'], name['per_device'], name['accumulation'])
        assert seen.setdefault(setting, (shared, optimizer, weights)) == (shared, optimizer, weights), recipe


def one_sample(task):
    """A random sample as the loader returns it."""
    if task == 'video':
        size = CLIPS['size']
        clip = torch.randint(0, 256, (1, 3, 8, size, size), dtype=torch.uint8)
        return dict(inputs=[clip], data_samples=[ClipDataSample(gt_label=torch.tensor(3))])
    size = SCENES['size']
    labels = torch.randint(0, len(SCENES['digits']) + 1, (1, size, size))
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=dict(img_shape=(size, size)))
    return dict(inputs=[torch.randint(0, 256, (3, size, size), dtype=torch.uint8)], data_samples=[sample])


@pytest.mark.parametrize('recipe', [recipe for recipe in RECIPES if '_1xb1-acc1-' in recipe])
def test_one_sample_trains_every_parameter(recipe):
    model = build(recipe).train()
    losses = model(**model.data_preprocessor(one_sample(parse(recipe)['task']), training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
