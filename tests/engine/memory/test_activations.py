"""`activation_memory` does not change the trained model, and wrong values are rejected."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from wsbcn_mm.engine.memory.activations import requested_activation_memory
from wsbcn_mm.engine.recipe.checks import check_recipe
from wsbcn_mm.engine.recipe.load import load_recipe
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.microbatch.activation_memory import find_blocks, set_activation_memory

CONFIGS = Path(__file__).parents[3] / 'configs'


class Noise(Dataset):
    """Six random images."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return dict(inputs=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index)))


class Stage(BaseModel):
    """Two blocks of two convolutions each."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(self._block(3), self._block(8))

    @staticmethod
    def _block(channels):
        layers = [WSConv2d(channels, 8, 3, padding=1), BatchChannelNorm(8, 4), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, WSConv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.2))

    def forward(self, inputs, mode='tensor'):
        out = self.blocks(inputs)
        return dict(loss=(out**2 - out).mean()) if mode == 'loss' else out


def train(work_dir, *, iterations=4, resume=False, **cfg):
    torch.manual_seed(0)
    loader = dict(
        batch_size=1,
        dataset=Noise(),
        sampler=dict(type='InfiniteSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    runner = Runner(
        Stage(),
        str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=2),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[dict(type='ActivationMemoryHook')],
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        resume=resume,
        cfg=dict(cfg),
        experiment_name=f'{work_dir.name}-{iterations}',
    )
    runner.train()
    logs = sorted(work_dir.glob('*/*.log'), key=lambda path: path.stat().st_mtime)
    return runner.model.state_dict(), logs[-1].read_text()


def test_every_mode_trains_the_same_model_and_logs_its_blocks(tmp_path):
    plain, log = train(tmp_path / 'all')
    assert 'activation_memory' not in log
    for mode in ('save_conv', 'full_checkpoint'):
        state, log = train(tmp_path / mode, activation_memory=mode)
        assert f'activation_memory={mode}: 2 blocks (2 Sequential); left out: no convolution and no norm' in log
        assert state.keys() == plain.keys()
        assert all(torch.equal(state[name], plain[name]) for name in plain)


def test_chosen_modules(tmp_path):
    _, log = train(tmp_path / 'run', activation_memory=dict(mode='save_conv', modules=['blocks.1']))
    assert 'activation_memory=save_conv: 1 blocks (1 Sequential); left out: blocks.0.0, blocks.0.1, ' in log


def test_a_run_resumes_in_another_mode(tmp_path):
    """Dropout draws other numbers after a resume in any mode, so two resumed runs are compared."""
    results = []
    for before, after in (('all', 'all'), ('save_conv', 'all'), ('all', 'save_conv')):
        folder = tmp_path / f'{before}-{after}'
        train(folder, activation_memory=before)
        state, _ = train(folder, iterations=8, resume=True, activation_memory=after)
        results.append(state)
    for state in results[1:]:
        assert all(torch.equal(state[name], results[0][name]) for name in state)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            dict(activation_memory='save-conv'),
            "activation_memory='save-conv': one of all, save_conv, full_checkpoint is expected",
        ),
        (
            dict(activation_memory=dict(blocks=['backbone'])),
            "activation_memory={'blocks': ['backbone']}: a mode or a dict of 'mode' and 'modules' is expected",
        ),
        (
            dict(activation_memory='save_conv', compile=True),
            "activation_memory='save_conv' with compile=True: both decide what is recomputed; set one of them",
        ),
        (
            dict(activation_memory='full_checkpoint', activation_checkpointing=['backbone.layer1']),
            "activation_memory='full_checkpoint' with activation_checkpointing=['backbone.layer1']: both decide what "
            'is recomputed; set one of them',
        ),
    ],
)
def test_wrong_values_are_rejected_before_anything_is_loaded(cfg, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        check_recipe(Config(cfg | dict(model=dict())))


def test_the_key_is_optional_and_compile_without_it_is_accepted():
    assert requested_activation_memory(Config(dict(compile=True))) == dict(mode='all')
    assert requested_activation_memory(Config(dict(compile=False, activation_memory='save_conv'))) == dict(
        mode='save_conv'
    )


def test_every_recipe_has_the_switch():
    cfg = load_recipe(str(next((CONFIGS / 'deeplabv3').glob('*.py'))), options=['activation_memory=save_conv'])
    assert requested_activation_memory(cfg) == dict(mode='save_conv')
    assert 'ActivationMemoryHook' in [hook.type for hook in cfg.default_hooks.values()]


def build(pattern):
    """Return the model of the first recipe that matches, with random weights."""
    path = sorted(CONFIGS.glob(pattern))[0]
    cfg = load_recipe(str(path))
    init_default_scope(cfg.default_scope)
    registry = pytest.importorskip('mmseg.registry').MODELS if cfg.default_scope == 'mmseg' else MODELS
    for part in ('pretrained', 'init_cfg'):
        cfg.model.pop(part, None)
        cfg.model.backbone.pop(part, None)
    return registry.build(cfg.model)


STAGES = [f'backbone.layer{i}.{j}' for i, n in enumerate((3, 4, 6, 3), 1) for j in range(n)]
BASIC_STAGES = [f'backbone.layer{i}.{j}' for i in range(1, 5) for j in range(2)]


@pytest.mark.parametrize(
    ('pattern', 'blocks'),
    [
        ('deeplabv3/deeplabv3_r50-d8_bcn-ws_1xb1*', [*STAGES, 'decode_head.aspp_modules']),
        (
            'deeplabv3plus/deeplabv3plus_r50-d8_bcn-ws_1xb1*',
            [
                *STAGES,
                *(f'decode_head.aspp_modules.{i}' for i in (1, 2, 3)),
                *(f'decode_head.sep_bottleneck.{i}' for i in (0, 1)),
            ],
        ),
        ('resnet3d/r3d-50_bcn-ws*', STAGES),
        ('resnet3d/slowonly-r50_bcn-ws*', STAGES),
        ('resnet3d/r2plus1d-18_gn-ws*', BASIC_STAGES),
    ],
)
def test_blocks_of_the_recipes_models(pattern, blocks):
    with torch.device('meta'):
        assert list(find_blocks(build(pattern))) == blocks


@pytest.mark.parametrize('norm', ['bn', 'gn-ws', 'bcn-ws'])
@pytest.mark.parametrize(
    ('backbone', 'size'),
    [('deeplabv3_r18-tiny_{}_1xb1-acc1*', (1, 3, 64, 64)), ('r3d-18-tiny_{}_1xb1-acc1*', (1, 3, 4, 24, 24))],
)
def test_the_tiny_recipes_models_are_bit_equal(backbone, size, norm):
    model = build(f'tiny/{backbone.format(norm)}').train()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    results = []
    for mode in ('all', 'save_conv', 'full_checkpoint'):
        model.load_state_dict(start)
        model.zero_grad()
        set_activation_memory(model, mode)
        features = model.backbone(x)
        out = model.decode_head.forward(features) if hasattr(model, 'decode_head') else features
        out.square().mean().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([out.detach(), *(g.clone() for g in grads), *(b.clone() for b in model.buffers())])
    assert len(results[0]) > 40
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_backbone_that_checkpoints_itself_is_rejected():
    cfg = load_recipe(str(sorted(CONFIGS.glob('tiny/r3d-18-tiny_bn_1xb1-acc1*'))[0]))
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.with_cp = True
    message = "activation_memory='save_conv': 6 modules (the first: backbone.layer1.0) have with_cp=True"
    with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
        set_activation_memory(MODELS.build(cfg.model), 'save_conv')
