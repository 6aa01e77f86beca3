"""Every 3D ResNet recipe parses and builds, holds exactly the layers its name says, and no row is missing."""

import re
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from torch import nn

import wsbcn_mm.video  # noqa: F401  registers the modules
from wsbcn_mm.surgery.kinds import count_convs, count_norms

FOLDER = Path(__file__).parents[2] / 'configs' / 'resnet3d'
RECIPES = {path.stem: path for path in sorted(FOLDER.glob('*.py'))}
NAME = re.compile(
    r'(?P<model>r3d-18|r3d-34|r3d-50|r2plus1d-18|r2plus1d-34|i3d-r50|i3d-r101|slowonly-r50)'
    r'_(?P<norm>bn|syncbn|gn|gn-ws|bn-ws|bcn-ws|bcnsync-ws)'
    r'_(?P<devices>\d+)xb(?P<per_device>\d+)-acc(?P<accumulation>\d+)-(?P<steps>\d+)k'
    r'_(?P<dataset>kinetics400|sthv1|sthv2)-(?P<frames>\d+)(?:x(?P<interval>\d+)x1|seg)-(?P<side>\d+)x(?P=side)'
)

# Convolutions of each model; a norm follows every one. Stem, blocks (basic ones have 2, bottlenecks 3, factorised ones
# twice as many) and projections (3 with basic blocks, 4 with bottlenecks).
LAYERS = {
    'r3d-18': 1 + 16 + 3,
    'r3d-34': 1 + 32 + 3,
    'r3d-50': 1 + 48 + 4,
    'r2plus1d-18': 2 + 32 + 3,
    'r2plus1d-34': 2 + 64 + 3,
    'i3d-r50': 1 + 48 + 4,
    'i3d-r101': 1 + 99 + 4,
    'slowonly-r50': 1 + 48 + 4,
}
# Convolutions whose kernel spans time.
TEMPORAL = {
    'r3d-18': 17,
    'r3d-34': 33,
    'r3d-50': 17,
    'r2plus1d-18': 17,
    'r2plus1d-34': 33,
    'i3d-r50': 1 + 3 + 2 + 3 + 1,
    'i3d-r101': 1 + 3 + 2 + 12 + 1,
    'slowonly-r50': 6 + 3,
}
NORM_KIND = {
    'bn': 'BN',
    'syncbn': 'SyncBN',
    'gn': 'GN',
    'gn-ws': 'GN',
    'bn-ws': 'BN',
    'bcn-ws': 'BCN',
    'bcnsync-ws': 'BCN (sync)',
}
# dataset: classes, optimizer steps, steps at which the rate drops, weight decay
SCHEDULE = {
    'kinetics400': (400, 188_000, [75_200, 150_400], 1e-4),
    'sthv1': (174, 67_200, [26_880, 53_760], 5e-4),
    'sthv2': (174, 132_000, [52_800, 105_600], 5e-4),
}
SAMPLES = {'kinetics400': 240_436, 'sthv1': 86_017, 'sthv2': 168_913}
EPOCHS = 50
INFLATED = {'i3d-r50': 'resnet50', 'i3d-r101': 'resnet101'}


def parse(recipe: str) -> dict[str, str]:
    match = NAME.fullmatch(recipe)
    assert match, f'{recipe} does not follow the naming scheme'
    return match.groupdict()


@cache
def load(recipe: str) -> Config:
    return Config.fromfile(RECIPES[recipe])


@cache
def build(text: str) -> nn.Module:
    init_default_scope('mmengine')
    with torch.device('meta'):
        return MODELS.build(Config.fromstring(text, '.py').model)


def model_of(recipe: str) -> nn.Module:
    """The recipe's model without memory for its weights; equal models are built once."""
    model = load(recipe).model.to_dict()
    model['backbone'].pop('init_cfg', None)
    return build(f'model = {model!r}')


@pytest.mark.parametrize('recipe', RECIPES)
def test_layers_are_what_the_name_says(recipe):
    name = parse(recipe)
    model = model_of(recipe)
    layers = LAYERS[name['model']]
    assert count_convs(model) == Counter({'WS' if name['norm'].endswith('-ws') else 'plain': layers})
    assert count_norms(model) == Counter({NORM_KIND[name['norm']]: layers})
    temporal = [m for m in model.modules() if isinstance(m, nn.Conv3d) and m.kernel_size[0] > 1]
    assert len(temporal) == TEMPORAL[name['model']]
    assert type(model.head.fc) is nn.Linear
    assert model.head.fc.out_features == SCHEDULE[name['dataset']][0]
    assert model.max_test_views == 1


@pytest.mark.parametrize('recipe', RECIPES)
def test_batch_and_schedule_are_what_the_name_says(recipe):
    name, cfg = parse(recipe), load(recipe)
    devices, per_device, accumulation = (int(name[key]) for key in ('devices', 'per_device', 'accumulation'))
    _, steps, drops, decay = SCHEDULE[name['dataset']]
    assert devices * per_device * accumulation == 64
    assert cfg.train_dataloader.batch_size == per_device
    assert cfg.optim_wrapper.accumulative_counts == accumulation
    assert cfg.optim_wrapper.optimizer == {'type': 'SGD', 'lr': 0.01, 'momentum': 0.9, 'weight_decay': decay}
    assert steps // 1000 == int(name['steps'])
    assert cfg.train_cfg.max_iters == steps * accumulation
    (scheduler,) = cfg.param_scheduler
    assert scheduler == {'type': 'MultiStepLR', 'milestones': drops, 'gamma': 0.1, 'by_epoch': False}
    assert cfg.default_hooks.param_scheduler == dict(type='ParamSchedulerPerStepHook')
    assert [d / steps for d in drops] == [20 / EPOCHS, 40 / EPOCHS]
    assert steps * 64 == pytest.approx(EPOCHS * SAMPLES[name['dataset']], rel=1e-3)
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == steps * accumulation // 10
    assert cfg.optim_wrapper.clip_grad.max_norm == (40 if name['dataset'] == 'kinetics400' else 20)
    assert cfg.model.head.dropout_ratio == 0.5


@pytest.mark.parametrize('recipe', RECIPES)
def test_data_are_what_the_name_says(recipe):
    name, cfg = parse(recipe), load(recipe)
    dataset = {'kinetics400': 'KineticsDataset', 'sthv1': 'SomethingV1Dataset', 'sthv2': 'SomethingV2Dataset'}
    for loader, random, views in (
        (cfg.train_dataloader, True, 1),
        (cfg.val_dataloader, False, 1),
        (cfg.test_dataloader, False, 10 if name['interval'] else 2),
    ):
        assert loader.dataset.type == dataset[name['dataset']]
        assert loader.dataset.type in DATASETS
        decode = loader.dataset.pipeline[0]
        sampler = {'num_clips': 1, **decode.sampler}
        frames = int(name['frames'])
        if name['interval']:
            dense = {'type': 'dense', 'clip_len': frames, 'interval': int(name['interval'])}
            assert sampler == dense | {'num_clips': views}
        else:
            assert sampler == {'type': 'segments', 'num_segments': frames, 'num_clips': views}
        assert decode.random == random
        crops = [t for t in loader.dataset.pipeline if 'Crop' in t.type]
        assert len(crops) == 1
        if loader is not cfg.test_dataloader:
            assert crops[0].size == int(name['side'])
    flips = [t.type for t in cfg.train_dataloader.dataset.pipeline if 'Flip' in t.type]
    assert flips == (['FlipClip'] if name['dataset'] == 'kinetics400' else [])
    assert cfg.val_evaluator.type in METRICS


@pytest.mark.parametrize('recipe', RECIPES)
def test_pretrained_start_has_the_recipes_norm_and_depth(recipe):
    name, cfg = parse(recipe), load(recipe)
    depth = 'resnet50' if name['dataset'] != 'kinetics400' else INFLATED.get(name['model'])
    init = cfg.model.backbone.get('init_cfg')
    if depth is None:
        assert init is None
        return
    norm = name['norm'].replace('sync', '').replace('-', '_')
    assert init == {'type': 'Inflated2d', 'checkpoint': f'pretrained/{depth}_{norm}.pth'}


@pytest.mark.parametrize('recipe', RECIPES)
def test_header_says_how_to_run_and_what_to_expect(recipe):
    name = parse(recipe)
    text = RECIPES[recipe].read_text()
    header = text.split('"""')[1]
    devices, per_device, accumulation = int(name['devices']), int(name['per_device']), int(name['accumulation'])
    command = (
        f'bash tools/dist_train.sh configs/resnet3d/{recipe}.py {devices}\n'
        if devices > 1
        else f'python tools/train.py configs/resnet3d/{recipe}.py\n'
    )
    assert command in header
    gpus, clips = 'GPU' if devices == 1 else 'GPUs', 'clip' if per_device == 1 else 'clips'
    assert f'{devices} {gpus} x {per_device} {clips} x {accumulation} accumulated = batch 64' in header
    assert 'Published: ' in header
    assert 'Measured: ' in header
    assert len(text.splitlines()) <= 25
    assert all(len(line) <= 120 for line in text.splitlines())


def test_every_model_and_data_set_has_gn_ws_and_bcn_ws_at_one_clip_on_one_device():
    names = [parse(recipe) for recipe in RECIPES]
    at_one = [n for n in names if (n['devices'], n['per_device']) == ('1', '1')]
    rows = [*((model, 'kinetics400') for model in LAYERS), ('slowonly-r50', 'sthv1'), ('slowonly-r50', 'sthv2')]
    have = [((n['model'], n['dataset']), n['norm']) for n in at_one]
    assert sorted(have) == sorted(product(rows, ('gn-ws', 'bcn-ws')))


@pytest.mark.parametrize(('model', 'published'), [('r3d-18', '63.20 / 83.48'), ('r2plus1d-18', '67.46 / 86.18')])
def test_every_published_kinetics_row_has_its_recipe(model, published):
    text = RECIPES[f'{model}_bn_8xb2-acc4-188k_kinetics400-16x4x1-112x112'].read_text()
    assert f'Published: {published} top-1 / top-5' in text


def test_readme_lists_every_recipe_once():
    listed = re.findall(r'\]\((.+?)\.py\)', (FOLDER / 'README.md').read_text())
    assert sorted(listed) == sorted(RECIPES)


def test_every_norm_trains_the_same_network():
    """Apart from the scale and shift of the norms, all norms have the same parameters."""
    shapes = {}
    for recipe in RECIPES:
        convs = {n: tuple(p.shape) for n, p in model_of(recipe).backbone.named_parameters() if p.ndim == 5}
        name = parse(recipe)
        assert shapes.setdefault((name['model'], name['dataset']), convs) == convs
