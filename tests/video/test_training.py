"""Recipes run unchanged on real video files, except for smaller widths and sizes, and other paths."""

import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from tests.video.clip_files import write_clip
from wsbcn_mm.engine.recipe.batch_plan import plan_batch
from wsbcn_mm.engine.recipe.tree import dicts_in
from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.surgery.fingerprint import fingerprint
from wsbcn_mm.video.models.resnet3d import ResNet3d

RECIPES = Path(__file__).parents[2] / 'configs' / 'resnet3d'
SMALL = {224: 32, 256: 40, 112: 32, 128: 40}


def write_kinetics(root: Path) -> None:
    (root / 'label_map_k400.txt').write_text(''.join(f'class {i}\n' for i in range(400)))
    for part in ('train', 'val'):
        (root / f'videos_{part}').mkdir(parents=True)
        names = [f'{part}{i}.mp4' for i in range(4)]
        for name in names:
            write_clip(root / f'videos_{part}' / name)
        lines = [f'{name} {100 * i}\n' for i, name in enumerate(names)]
        (root / f'kinetics400_{part}_list_videos.txt').write_text(''.join(lines))


def write_something(root: Path) -> None:
    videos = root / '20bn-something-something-v2'
    videos.mkdir(parents=True)
    names = [f'Doing {i} to something' for i in range(174)]
    (root / 'something-something-v2-labels.json').write_text(json.dumps({n: str(i) for i, n in enumerate(names)}))
    for part in ('train', 'validation'):
        clips = [
            {
                'id': f'{len(part)}{i}',
                'label': names[i].replace('something', 'a cup'),
                'template': names[i].replace('something', '[something]'),
                'placeholders': ['a cup'],
            }
            for i in range(4)
        ]
        for clip in clips:
            write_clip(videos / f'{clip["id"]}.webm', codec='libvpx-vp9')
        (root / f'something-something-v2-{part}.json').write_text(json.dumps(clips))


def small(recipe: str, root: Path, steps: int, per_device: int) -> Config:
    """The recipe as eight devices train it."""
    cfg = Config.fromfile(RECIPES / f'{recipe}.py')
    plan_batch(cfg, 8, per_device=per_device)
    accumulation = cfg.optim_wrapper.accumulative_counts
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.num_workers = 0
        loader.persistent_workers = False
        loader.dataset.data_root = str(root)
        for node in dicts_in(loader.dataset.pipeline):
            if 'size' in node:
                node['size'] = SMALL[node['size']]
    backbone = cfg.model.backbone
    backbone.base_channels = 8
    if backbone.get('factorize'):
        backbone.mid_channels_divisor = 4
    if 'num_groups' in backbone.norm_cfg:
        backbone.norm_cfg.num_groups = 4
    cfg.model.head.in_channels //= 8
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = steps * accumulation
    cfg.default_hooks.checkpoint.interval = steps * accumulation
    cfg.param_scheduler[0].milestones = [accumulation]
    cfg.work_dir = str(root / 'work')
    cfg.experiment_name = root.name
    return cfg


def save_2d_backbone(cfg: Config, path: Path) -> str:
    """A 2D ResNet's checkpoint as from ImageNet training: the recipe's network without temporal kernels."""
    arguments = {k: v for k, v in cfg.model.backbone.items() if k not in ('type', 'init_cfg')}
    net = ResNet3d(**(arguments | {'conv1_kernel': (1, 7, 7), 'inflate': (0, 0, 0, 0)}))
    state = {}
    for name, tensor in net.state_dict().items():
        for ours, theirs in ((r'downsample\.conv', 'downsample.0'), (r'downsample\.bn', 'downsample.1')):
            name = re.sub(ours, theirs, name)
        name = re.sub(r'conv(\d)\.conv', r'conv\1', re.sub(r'conv(\d)\.bn', r'bn\1', name))
        state[name] = tensor.squeeze(2) if tensor.ndim == 5 else tensor
    torch.save(dict(state_dict=state, meta=dict(fingerprint=fingerprint(net))), path)
    return str(path)


def check_rates_and_decay(runner: Runner, something: bool) -> None:
    groups = {
        id(p): (g['initial_lr'], g['weight_decay']) for g in runner.optim_wrapper.param_groups for p in g['params']
    }
    for name, parameter in runner.model.named_parameters():
        decay = 5e-4 if something else 1e-4
        rate = 0.01
        if something:
            rate *= {'head.fc.weight': 5, 'head.fc.bias': 10}.get(name, 1)
            decay = decay if parameter.ndim > 1 else 0
        assert groups[id(parameter)] == (pytest.approx(rate), decay), name


@pytest.mark.parametrize(
    ('recipe', 'per_device', 'views'),
    [
        ('r3d-18_bcn-ws_1xb1-acc64-188k_kinetics400-16x4x1-112x112', 2, 30),
        ('r2plus1d-18_gn-ws_1xb1-acc64-188k_kinetics400-16x4x1-112x112', 1, 30),
        ('slowonly-r50_bcn-ws_1xb1-acc64-132k_sthv2-8seg-224x224', 1, 6),
    ],
)
def test_a_recipe_trains_validates_saves_and_tests(recipe, per_device, views, tmp_path):
    write_kinetics(tmp_path) if 'kinetics' in recipe else write_something(tmp_path)
    cfg = small(recipe, tmp_path, steps=2, per_device=per_device)
    if cfg.model.backbone.get('init_cfg'):
        cfg.model.backbone.init_cfg.checkpoint = save_2d_backbone(cfg, tmp_path / '2d.pth')
    runner = Runner.from_cfg(cfg)
    micro_batches = cfg.train_cfg.max_iters
    runner.train()
    assert runner.iter == micro_batches
    weights = runner.model.state_dict()
    assert all(value.isfinite().all() for value in weights.values())
    for module in runner.model.modules():
        if isinstance(module, BatchChannelNorm):
            assert module.num_batches_tracked == 2, 'estimates move once per optimizer step'
    check_rates_and_decay(runner, something='sth' in recipe)
    saved = torch.load(tmp_path / 'work' / f'iter_{micro_batches}.pth', weights_only=False)
    assert saved['state_dict'].keys() == weights.keys()
    seen: list[int] = []
    runner.model.backbone.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    metrics = runner.test()
    assert metrics['acc/num_clips'] == 4
    assert seen == [1] * (4 * views)
