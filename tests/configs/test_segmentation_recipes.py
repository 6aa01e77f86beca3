"""Every DeepLab recipe parses and builds, holds exactly the layers its name says, and no row is missing."""

import re
from collections import Counter
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

import wsbcn_mm.segmentation  # noqa: F401
from wsbcn_mm.segmentation.models.checks import check_norms
from wsbcn_mm.surgery.kinds import conv_kind, count_convs, count_norms

CONFIGS = Path(__file__).parents[2] / 'configs'
RECIPES = {p.stem: p for folder in ('deeplabv3', 'deeplabv3plus') for p in sorted((CONFIGS / folder).glob('*.py'))}
NAME = re.compile(
    r'(?P<model>deeplabv3|deeplabv3plus)_r(?P<depth>50|101)-d(?P<stride>8|16)(?P<multigrid>-mg124)?'
    r'_(?P<norm>bn|syncbn|gn|gn-ws|bn-ws|bcn-ws|bcnsync-ws)(?P<scope>-backbone)?'
    r'_(?P<devices>\d+)xb(?P<per_device>\d+)-acc(?P<accumulation>\d+)-(?P<steps>\d+)k'
    r'_(?P<dataset>cityscapes|voc12aug)-(?P<height>\d+)x(?P<width>\d+)'
)

BACKBONE_CONVS = {50: 53, 101: 104}
"""1 stem + 3 per bottleneck + 4 projections, each with a norm."""
HEAD_CONVS = {'deeplabv3': 6, 'deeplabv3plus': 14}
"""Convs that a norm follows. V3: image pooling, 4 ASPP, bottleneck. V3+: 4 and 5 separable, which are 2 each."""
AUXILIARY_CONVS = {'voc12aug': 0, 'cityscapes': 1}
NORM_KIND = {
    'bn': 'BN',
    'syncbn': 'SyncBN',
    'gn': 'GN',
    'gn-ws': 'GN',
    'bn-ws': 'BN',
    'bcn-ws': 'BCN',
    'bcnsync-ws': 'BCN (sync)',
}
CHECKPOINT = {
    'bn': 'bn',
    'syncbn': 'bn',
    'gn': 'gn',
    'gn-ws': 'gn_ws',
    'bn-ws': 'bn_ws',
    'bcn-ws': 'bcn_ws',
    'bcnsync-ws': 'bcn_ws',
}
SCHEDULE = {
    # dataset: batch, learning rate, weight decay, validations
    'cityscapes': (8, 0.01, 5e-4, 10),
    'voc12aug': (16, 0.007, 1e-4, 10),
}
STEPS = {'33': 33_100, '40': 40_000, '80': 80_000}


def parse(recipe: str) -> dict[str, str]:
    match = NAME.fullmatch(recipe)
    assert match, f'{recipe} does not follow the naming scheme'
    return match.groupdict()


@cache
def load(recipe: str) -> Config:
    return Config.fromfile(RECIPES[recipe])


@cache
def build_model(text: str) -> nn.Module:
    init_default_scope('mmseg')
    with torch.device('meta'):
        return MODELS.build(Config.fromstring(text, '.py').model)


def model_of(recipe: str) -> nn.Module:
    """The recipe's model without memory for its weights; equal models are built once."""
    model = load(recipe).model.to_dict()
    model['backbone'].pop('init_cfg')
    model['data_preprocessor'].pop('size')
    return build_model(f'model = {model!r}')


def written(recipe: str) -> str:
    return repr(load(recipe).to_dict())


def lacks_pool_norm(name: dict[str, str]) -> bool:
    return name['norm'] in ('bn', 'bn-ws') and name['per_device'] == '1'


@pytest.mark.parametrize('recipe', RECIPES)
def test_layers_are_what_the_name_says(recipe: str) -> None:
    name = parse(recipe)
    backbone, head = BACKBONE_CONVS[int(name['depth'])], HEAD_CONVS[name['model']]
    auxiliary = AUXILIARY_CONVS[name['dataset']]
    unpooled = int(lacks_pool_norm(name))
    normed = backbone + head + auxiliary - unpooled
    classifiers = 1 + auxiliary
    standardised = 0
    if name['norm'].endswith('-ws'):
        standardised = backbone if name['scope'] else normed
    model = model_of(recipe)
    expected = {'WS': standardised, 'plain': normed + unpooled + classifiers - standardised}
    assert count_convs(model) == Counter({kind: n for kind, n in expected.items() if n})
    assert count_norms(model) == Counter({NORM_KIND[name['norm']]: normed})
    for module_name, module in model.named_modules():
        if module_name.endswith('conv_seg'):
            assert conv_kind(module) == 'plain'


@pytest.mark.parametrize('recipe', RECIPES)
def test_norms_are_defined_at_the_recipes_batch(recipe: str) -> None:
    name = parse(recipe)
    check_norms(model_of(recipe), int(name['per_device']), int(name['devices']))


@pytest.mark.parametrize('recipe', RECIPES)
def test_batch_schedule_and_crop_are_what_the_name_says(recipe: str) -> None:
    name, cfg = parse(recipe), load(recipe)
    batch, lr, weight_decay, validations = SCHEDULE[name['dataset']]
    accumulation = int(name['accumulation'])
    assert int(name['devices']) * int(name['per_device']) * accumulation == batch
    assert cfg.train_dataloader.batch_size == int(name['per_device'])
    assert cfg.optim_wrapper.accumulative_counts == accumulation
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=lr, momentum=0.9, weight_decay=weight_decay)

    steps = STEPS[name['steps']]
    iterations = steps * accumulation
    (poly,) = cfg.param_scheduler
    eta_min = 0.0 if name['dataset'] == 'voc12aug' else 1e-4
    assert poly == dict(type='PolyLR', power=0.9, eta_min=eta_min, begin=0, end=steps, by_epoch=False)
    assert cfg.default_hooks.param_scheduler == dict(type='ParamSchedulerPerStepHook')
    assert cfg.train_cfg.type == 'IterBasedTrainLoop'
    assert cfg.train_cfg.max_iters == iterations
    assert cfg.train_cfg.val_interval * validations == iterations
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval

    crop = (int(name['height']), int(name['width']))
    (cut,) = [step for step in train_pipeline(cfg) if step['type'] in ('RandomCrop', 'RandomScaledCrop')]
    assert tuple(cut['crop_size']) == tuple(cfg.model.data_preprocessor.size) == crop
    if crop[0] == crop[1]:
        assert cfg.model.decode_head.align_corners
    slide = dict(mode='slide', crop_size=(769, 769), stride=(513, 513))
    assert cfg.model.test_cfg.to_dict() == (slide if crop == (769, 769) else dict(mode='whole'))


def train_pipeline(cfg: Config) -> list[dict]:
    dataset = cfg.train_dataloader.dataset
    return dataset.get('pipeline') or dataset.datasets[0].pipeline


@pytest.mark.parametrize('recipe', RECIPES)
def test_backbone_is_what_the_name_says_and_starts_from_a_local_file(recipe: str) -> None:
    name, backbone = parse(recipe), load(recipe).model.backbone
    assert backbone.type == 'ResNet'
    assert backbone.depth == int(name['depth'])
    stride = 4
    for stage_stride in backbone.strides:
        stride *= stage_stride
    assert stride == int(name['stride'])
    # mmseg takes dilations of the last stage as they are, so the paper's (1, 2, 4) at output stride 16 are twice that
    assert backbone.get('multi_grid') == ((2, 4, 8) if name['multigrid'] else None)
    file = f'pretrained/resnet{name["depth"]}_{CHECKPOINT[name["norm"]]}.pth'
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=file)
    assert '://' not in written(recipe)


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipe_is_short_and_its_header_gives_command_devices_and_rows(recipe: str) -> None:
    name, text = parse(recipe), RECIPES[recipe].read_text()
    _, header, body = text.split('"""')
    assert len(body.strip().splitlines()) <= 20
    tool = 'python tools/train.py' if name['devices'] == '1' else 'bash tools/dist_train.sh'
    devices = '' if name['devices'] == '1' else f' {name["devices"]}'
    assert f'\n{tool} configs/{name["model"]}/{recipe}.py{devices}\n' in header
    plural = {key: 's' if name[key] != '1' else '' for key in ('devices', 'per_device')}
    assert (
        f'\n{name["devices"]} GPU{plural["devices"]} x {name["per_device"]} image{plural["per_device"]} x '
        f'{name["accumulation"]} accumulated = batch {SCHEDULE[name["dataset"]][0]}; memory: '
    ) in header
    assert '\nPublished: ' in header
    assert '\nMeasured: ' in header


def test_only_recipes_of_synchronised_norms_have_them() -> None:
    assert {r for r in RECIPES if 'SyncBN' in written(r)} == {r for r in RECIPES if '_syncbn_' in r}
    assert {r for r in RECIPES if "'statistics': 'sync'" in written(r)} == {r for r in RECIPES if 'bcnsync' in r}


def test_authors_voc_recipe_is_as_published() -> None:
    model = load('deeplabv3_r101-d16_bcnsync-ws_8xb2-acc1-33k_voc12aug-513x513').model
    head = model.decode_head
    assert 'auxiliary_head' not in model
    assert model.backbone.dilations == (1, 1, 1, 2)
    assert model.backbone.contract_dilation
    assert (head.dilations, head.channels, head.bottleneck_kernel_size) == ((1, 6, 12, 18), 256, 1)
    assert (head.dropout_ratio, head.align_corners) == (0, True)
    assert head.loss_decode.avg_non_ignore
    last_stage = model_of('deeplabv3_r101-d16_bcnsync-ws_8xb2-acc1-33k_voc12aug-513x513').backbone.layer4
    assert [block.conv2.dilation[0] for block in last_stage] == [1, 2, 2]
    reference = model_of('deeplabv3_r101-d16-mg124_syncbn_8xb2-acc1-33k_voc12aug-513x513').backbone.layer4
    assert [block.conv2.dilation[0] for block in reference] == [2, 4, 8]


@pytest.mark.parametrize(
    ('norm', 'published'), [('bn', '76.49'), ('gn-ws', '77.20'), ('bcnsync-ws', '78.10'), ('mg124', '77.21')]
)
def test_every_published_voc_row_has_its_recipe(norm: str, published: str) -> None:
    net = 'deeplabv3_r101-d16' + ('-mg124_syncbn' if norm == 'mg124' else f'_{norm}')
    text = RECIPES[f'{net}_8xb2-acc1-33k_voc12aug-513x513'].read_text()
    assert f'Published: {published} mIoU' in text


def test_every_model_and_crop_has_gn_ws_and_bcn_ws_at_one_image_on_one_device() -> None:
    crops = [('8', 'cityscapes', '512'), ('8', 'cityscapes', '769'), ('16', 'voc12aug', '513')]
    names = [parse(recipe) for recipe in RECIPES]
    at_one = [n for n in names if (n['devices'], n['per_device']) == ('1', '1')]
    have = [(n['model'], n['depth'], (n['stride'], n['dataset'], n['height']), n['norm']) for n in at_one]
    assert sorted(have) == sorted(product(HEAD_CONVS, ('50', '101'), crops, ('gn-ws', 'bcn-ws')))


def test_every_published_cityscapes_row_has_its_recipe() -> None:
    """mmsegmentation's: SyncBN on 4 x 2 images."""
    names = [parse(recipe) for recipe in RECIPES]
    cityscapes = [n for n in names if n['norm'] == 'syncbn' and n['dataset'] == 'cityscapes']
    assert {(n['devices'], n['per_device']) for n in cityscapes} == {('4', '2')}
    have = [(n['model'], n['depth'], n['height'], n['steps']) for n in cityscapes]
    expected = [*product(HEAD_CONVS, ('50', '101'), ('512', '769'), ['80']), ('deeplabv3', '50', '512', '40')]
    assert sorted(have) == sorted(expected)


@pytest.mark.parametrize('folder', ['deeplabv3', 'deeplabv3plus'])
def test_readme_lists_every_recipe(folder: str) -> None:
    links = re.findall(r'\]\((\S+\.py)\)', (CONFIGS / folder / 'README.md').read_text())
    assert sorted(links) == sorted(p.name for p in (CONFIGS / folder).glob('*.py'))
