"""The flags of tools/train.py make the recipes that have no file: the combinations that once had one, and every norm.

`deleted_recipes.json` holds what 23 recipe files resolved to before they were deleted: model, optimizer, schedule and
hooks of each, and the data of each data set. The commands here make them again:

    python tools/train.py RECIPE FLAGS                          on one device
    bash tools/dist_train.sh RECIPE DEVICES FLAGS               on several
"""

import argparse
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from wsbcn_mm.engine.recipe.batch_plan import plan_batch
from wsbcn_mm.engine.recipe.load import load_recipe
from wsbcn_mm.engine.recipe.model import build_model
from wsbcn_mm.engine.recipe.norms import switch_norm
from wsbcn_mm.surgery.policies import POLICIES, get_policy

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
NORMS = CONFIGS / '_base_' / 'norms'
DELETED = json.loads((Path(__file__).parent / 'deleted_recipes.json').read_text())

V3, PLUS = 'deeplabv3/deeplabv3', 'deeplabv3plus/deeplabv3plus'
VOC, CITYSCAPES, SQUARE = 'voc12aug-513x513', 'cityscapes-512x1024', 'cityscapes-769x769'
KINETICS_112, KINETICS_224 = 'kinetics400-16x4x1-112x112', 'kinetics400-32x2x1-224x224'
WITHOUT_POOL_NORM = '--cfg-options model.decode_head.image_pool_norm=False'
"""BN has no statistics in the image pooling branch, one value per channel, at one image per device."""

COMMANDS = {
    # deleted recipe: file and flags that make it; devices as in its name
    f'deeplabv3_r101-d16_bcn-ws_8xb2-acc1-33k_{VOC}': (
        f'{V3}_r101-d16_bcn-ws_1xb1-acc16-33k_{VOC}', '--per-device 2 --global-batch 16'),
    f'deeplabv3_r101-d16_bcn-ws_1xb2-acc8-33k_{VOC}': (
        f'{V3}_r101-d16_bcn-ws_1xb1-acc16-33k_{VOC}', '--per-device 2'),
    f'deeplabv3_r101-d16_bcn-ws-backbone_16xb1-acc1-33k_{VOC}': (
        f'{V3}_r101-d16_bcn-ws_1xb1-acc16-33k_{VOC}', '--norm bcn-ws-backbone --per-device 1'),
    f'deeplabv3_r101-d16_syncbn_16xb1-acc1-33k_{VOC}': (
        f'{V3}_r101-d16_bn_8xb2-acc1-33k_{VOC}', '--norm syncbn --per-device 1'),
    f'deeplabv3_r101-d16_gn_8xb2-acc1-33k_{VOC}': (
        f'{V3}_r101-d16_bn_8xb2-acc1-33k_{VOC}', '--norm gn'),
    f'deeplabv3_r101-d16_bn-ws_16xb1-acc1-33k_{VOC}': (
        f'{V3}_r101-d16_bn_8xb2-acc1-33k_{VOC}', f'--norm bn-ws --per-device 1 {WITHOUT_POOL_NORM}'),
    f'deeplabv3_r101-d16_bcnsync-ws_16xb1-acc1-33k_{VOC}': (
        f'{V3}_r101-d16_bcnsync-ws_8xb2-acc1-33k_{VOC}', '--per-device 1'),
    f'deeplabv3_r50-d16_syncbn_8xb2-acc1-33k_{VOC}': (
        f'{V3}_r50-d16_gn-ws_1xb1-acc16-33k_{VOC}', '--norm syncbn --per-device 2'),
    f'deeplabv3_r50-d8_bn_8xb1-acc1-80k_{CITYSCAPES}': (
        f'{V3}_r50-d8_syncbn_4xb2-acc1-80k_{CITYSCAPES}', f'--norm bn --per-device 1 {WITHOUT_POOL_NORM}'),
    f'deeplabv3_r50-d8_bcnsync-ws_4xb2-acc1-80k_{CITYSCAPES}': (
        f'{V3}_r50-d8_bcn-ws_1xb1-acc8-80k_{CITYSCAPES}', '--norm bcnsync-ws --per-device 2'),
    f'deeplabv3_r50-d8_bcn-ws_8xb1-acc1-40k_{CITYSCAPES}': (
        f'{V3}_r50-d8_syncbn_4xb2-acc1-40k_{CITYSCAPES}', '--norm bcn-ws --per-device 1'),
    f'deeplabv3_r101-d8_gn-ws_8xb1-acc1-80k_{SQUARE}': (
        f'{V3}_r101-d8_gn-ws_1xb1-acc8-80k_{SQUARE}', '--global-batch 8'),
    f'deeplabv3plus_r101-d16_syncbn_8xb2-acc1-33k_{VOC}': (
        f'{PLUS}_r101-d16_gn-ws_1xb1-acc16-33k_{VOC}', '--norm syncbn --per-device 2'),
    f'deeplabv3plus_r50-d8_bcn-ws-backbone_8xb1-acc1-80k_{CITYSCAPES}': (
        f'{PLUS}_r50-d8_syncbn_4xb2-acc1-80k_{CITYSCAPES}', '--norm bcn-ws-backbone --per-device 1'),
    f'deeplabv3plus_r50-d8_bcn-ws_4xb1-acc2-80k_{CITYSCAPES}': (
        f'{PLUS}_r50-d8_bcn-ws_1xb1-acc8-80k_{CITYSCAPES}', '--per-device 1'),
    f'deeplabv3plus_r50-d8_bcn-ws_4xb2-acc1-80k_{SQUARE}': (
        f'{PLUS}_r50-d8_syncbn_4xb2-acc1-80k_{SQUARE}', '--norm bcn-ws'),
    f'r3d-18_gn_8xb2-acc4-188k_{KINETICS_112}': (
        f'resnet3d/r3d-18_bn_8xb2-acc4-188k_{KINETICS_112}', '--norm gn'),
    f'r3d-50_bn_8xb2-acc4-188k_{KINETICS_112}': (
        f'resnet3d/r3d-50_bcn-ws_1xb1-acc64-188k_{KINETICS_112}', '--norm bn --per-device 2'),
    f'r2plus1d-34_bcn-ws_8xb1-acc8-188k_{KINETICS_112}': (
        f'resnet3d/r2plus1d-34_bcn-ws_1xb1-acc64-188k_{KINETICS_112}', '--global-batch 64'),
    f'i3d-r101_bn_8xb2-acc4-188k_{KINETICS_224}': (
        f'resnet3d/i3d-r101_gn-ws_1xb1-acc64-188k_{KINETICS_224}', '--norm bn --per-device 2'),
    'slowonly-r50_bn_8xb2-acc4-188k_kinetics400-8x8x1-224x224': (
        'resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-188k_kinetics400-8x8x1-224x224', '--norm bn --per-device 2'),
    'slowonly-r50_bn-ws_8xb2-acc4-67k_sthv1-8seg-224x224': (
        'resnet3d/slowonly-r50_gn-ws_1xb1-acc64-67k_sthv1-8seg-224x224', '--norm bn-ws --per-device 2'),
    'slowonly-r50_bcnsync-ws_8xb1-acc8-132k_sthv2-8seg-224x224': (
        'resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-132k_sthv2-8seg-224x224', '--norm bcnsync-ws --per-device 1'),
}  # fmt: skip

ABSENT = '(absent)'
PLAIN = dict(type='Conv2d')
WRITTEN_OUT: dict[str, dict[str, Any]] = {
    # What the flags write out and the deleted file left to a default of the same value; nothing else may differ.
    # The default conv_cfg of heads is a plain convolution.
    f'deeplabv3_r101-d16_bcn-ws-backbone_16xb1-acc1-33k_{VOC}': {'model.decode_head.conv_cfg': PLAIN},
    f'deeplabv3plus_r50-d8_bcn-ws-backbone_8xb1-acc1-80k_{CITYSCAPES}': {
        'model.decode_head.conv_cfg': PLAIN, 'model.auxiliary_head.conv_cfg': PLAIN},
    # 0.1 is the default rate of BatchChannelNorm.
    f'deeplabv3_r50-d8_bcnsync-ws_4xb2-acc1-80k_{CITYSCAPES}': {
        f'model.{part}.norm_cfg.rate': 0.1 for part in ('backbone', 'decode_head', 'auxiliary_head')},
    'slowonly-r50_bcnsync-ws_8xb1-acc8-132k_sthv2-8seg-224x224': {
        'model.backbone.norm_cfg.rate': 0.1, 'param_scheduler.0.end': 132_000},
    # A MultiStepLR without an end ends with the run, whose last step the batch plan writes out.
    f'r3d-50_bn_8xb2-acc4-188k_{KINETICS_112}': {'param_scheduler.0.end': 188_000},
    f'r2plus1d-34_bcn-ws_8xb1-acc8-188k_{KINETICS_112}': {'param_scheduler.0.end': 188_000},
    f'i3d-r101_bn_8xb2-acc4-188k_{KINETICS_224}': {'param_scheduler.0.end': 188_000},
    'slowonly-r50_bn_8xb2-acc4-188k_kinetics400-8x8x1-224x224': {'param_scheduler.0.end': 188_000},
    'slowonly-r50_bn-ws_8xb2-acc4-67k_sthv1-8seg-224x224': {'param_scheduler.0.end': 67_200},
}  # fmt: skip


def make(recipe: str, devices: int, flags: str) -> Config:
    """The config that tools/train.py trains with these flags on this number of devices."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--norm')
    parser.add_argument('--global-batch', type=int)
    parser.add_argument('--per-device', type=int)
    parser.add_argument('--cfg-options', nargs='+')
    args = parser.parse_args(shlex.split(flags))
    cfg = load_recipe(str(CONFIGS / f'{recipe}.py'), options=args.cfg_options)
    if args.norm:
        switch_norm(cfg, args.norm, NORMS)
    plan_batch(cfg, devices, global_batch=args.global_batch, per_device=args.per_device)
    return cfg


def resolved(recipe: str) -> dict[str, Any]:
    """What the file of a deleted recipe resolved to."""
    kept = dict(DELETED['recipes'][recipe])
    data = DELETED['data'][kept.pop('data')]
    loader = data['train_dataloader'] | dict(batch_size=kept.pop('batch_size'))
    return {**data, **kept, 'train_dataloader': loader}


def differences(was: Any, now: Any, path: str = '') -> Iterator[tuple[str, Any, Any]]:
    """Path, old and new value of every leaf that differs; `ABSENT` stands for a key that one of them lacks."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted({*was, *now}):
            yield from differences(was.get(key, ABSENT), now.get(key, ABSENT), f'{path}.{key}' if path else key)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for index, pair in enumerate(zip(was, now, strict=True)):
            yield from differences(*pair, f'{path}.{index}')
    elif was != now:
        yield path, was, now


def test_there_are_few_files() -> None:
    assert sum(1 for folder in ('deeplabv3', 'deeplabv3plus', 'resnet3d') for _ in (CONFIGS / folder).glob('*.py')) <= 60


def test_every_deleted_recipe_here_has_its_command() -> None:
    assert set(COMMANDS) == set(DELETED['recipes'])
    assert set(WRITTEN_OUT) < set(COMMANDS)
    assert not [name for name in COMMANDS if list(CONFIGS.glob(f'*/{name}.py'))]


@pytest.mark.parametrize('recipe', COMMANDS)
def test_flags_make_what_the_deleted_file_was(recipe: str) -> None:
    kept, flags = COMMANDS[recipe]
    devices, per_device, accumulation = map(int, re.search(r'_(\d+)xb(\d+)-acc(\d+)-', recipe).groups())
    made = make(kept, devices, flags)
    assert made.batch_plan.run.effective_batch == devices * per_device * accumulation

    was = resolved(recipe)
    now = json.loads(json.dumps({key: made[key] for key in was}, default=list))
    now['default_hooks'] = {key: now['default_hooks'][key] for key in was['default_hooks']}
    assert list(differences(was, now)) == [
        (path, ABSENT, value) for path, value in sorted(WRITTEN_OUT.get(recipe, {}).items())
    ]
    if was['model'] != now['model']:
        models = [build_model(Config(dict(default_scope=made.default_scope, model=one['model']))) for one in (was, now)]
        assert repr(models[0]) == repr(models[1])


FAMILIES = {
    # recipe: convolutions that a norm follows, in the backbone and in all; plain classifiers
    f'{V3}_r50-d8_syncbn_4xb2-acc1-80k_{CITYSCAPES}': (53, 60, 2),
    f'{PLUS}_r50-d16_gn-ws_1xb1-acc16-33k_{VOC}': (53, 67, 1),
    f'resnet3d/r3d-18_bcn-ws_1xb1-acc64-188k_{KINETICS_112}': (20, 20, 0),
    f'resnet3d/r2plus1d-18_bn_8xb2-acc4-188k_{KINETICS_112}': (37, 37, 0),
    f'resnet3d/i3d-r50_gn-ws_1xb1-acc64-188k_{KINETICS_224}': (53, 53, 0),
    'resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-67k_sthv1-8seg-224x224': (53, 53, 0),
}


@pytest.mark.parametrize(
    ('recipe', 'norm'),
    [*product(FAMILIES, POLICIES), *((recipe, 'bcn-ws-backbone') for recipe in FAMILIES if 'deeplab' in recipe)],
)
def test_every_family_takes_every_norm(recipe: str, norm: str) -> None:
    backbone, normed, classifiers = FAMILIES[recipe]
    policy = get_policy(norm)
    standardised = (backbone if policy.ws_within else normed) if policy.ws else 0
    convs = Counter(WS=standardised, plain=normed + classifiers - standardised)
    report = switch_norm(load_recipe(str(CONFIGS / f'{recipe}.py')), norm, NORMS)
    assert report[0].endswith(f' -> {normed} {policy.norm}')
    assert report[1].endswith(' -> ' + ', '.join(f'{n} {kind}' for kind, n in convs.items() if n))


README = (CONFIGS / 'README.md').read_text()


def test_the_readme_names_every_norm() -> None:
    assert re.findall(r'^\| `([\w-]+)` \|', README, re.MULTILINE) == list(POLICIES)


def test_the_commands_of_the_readme_work() -> None:
    (block,) = re.findall(r'^```bash\n(.*?)^```$', README, re.DOTALL | re.MULTILINE)
    commands = [line.split('#')[0].strip() for line in block.replace('\\\n', ' ').splitlines()]
    several = re.compile(r'bash tools/dist_train\.sh configs/(\S+)\.py (\d+) (--.+)')
    single = re.compile(r'python tools/train\.py configs/(\S+)\.py()(?: (--.+))')
    commands = [command for command in commands if command]
    for command in commands:
        recipe, devices, flags = (several.fullmatch(command) or single.fullmatch(command)).groups()
        make(recipe, int(devices or 1), flags.replace('--print-config', ''))
    assert len(commands) >= 3
