"""Fingerprints in checkpoints, and the weights that the guard rejects, with real Runners, files and init_cfgs."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from wsbcn_mm.engine.hooks import CheckpointGuardHook
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.surgery.fingerprint import fingerprint

NORMS = {
    'bn': nn.BatchNorm2d,
    'gn': lambda channels: nn.GroupNorm(2, channels),
    'bcn': lambda channels: BatchChannelNorm(channels, 2),
}


class Points(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index)))


class Backbone(BaseModule):
    """A stem and a block by mmseg's names."""

    def __init__(self, kind, width=4, init_cfg=None):
        super().__init__(init_cfg)
        norm, _, ws = kind.partition('-')
        conv = WSConv2d if ws else nn.Conv2d
        name = 'gn1' if norm == 'gn' else 'bn1'
        self.names = name
        self.conv1 = conv(3, width, 3, bias=False)
        self.add_module(name, NORMS[norm](width))
        block = nn.Module()
        block.conv1 = conv(width, width, 3, bias=False)
        block.add_module(name, NORMS[norm](width))
        self.layer1 = nn.Sequential(block)

    def forward(self, x):
        x = getattr(self, self.names)(self.conv1(x)).relu()
        block = self.layer1[0]
        return getattr(block, self.names)(block.conv1(x)).relu()


class Model(BaseModel):
    def __init__(self, kind, classes=2, **backbone):
        super().__init__()
        self.backbone = Backbone(kind, **backbone)
        self.fc = nn.Linear(4, classes)

    def forward(self, inputs, mode='tensor'):
        out = self.fc(self.backbone(inputs).mean((2, 3)))
        return dict(loss=out.square().mean()) if mode == 'loss' else out


RUNS = iter(range(1000))


def run(tmp_path, model, **cfg):
    """A Runner of one iteration that saves its last checkpoint."""
    return Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(
            batch_size=2,
            dataset=Points(),
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)),
        custom_hooks=[CheckpointGuardHook()],
        log_processor=dict(by_epoch=False),
        experiment_name=f'guard{next(RUNS)}',
        cfg=dict(load_from=cfg.get('load_from'), resume=cfg.get('resume', False)) | cfg,
        load_from=cfg.get('load_from'),
        resume=cfg.get('resume', False),
    )


def log_of(runner):
    return ''.join(file.read_text() for file in Path(runner.work_dir).glob('*/*.log'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """{kind: a checkpoint that the guard wrote}."""
    files = {}
    with DefaultScope.overwrite_default_scope('mmengine'):  # restores the scope that the Runners set
        for kind in ('bn', 'gn', 'gn-ws', 'bcn-ws'):
            folder = tmp_path_factory.mktemp(kind)
            run(folder, Model(kind)).train()
            files[kind] = str(folder / 'iter_1.pth')
    return files


def unstamped(file, folder, keep=lambda key: True):
    """Save only the weights of a checkpoint, like a foreign file."""
    state = torch.load(file, weights_only=False)['state_dict']
    path = folder / 'foreign.pth'
    torch.save({key: tensor for key, tensor in state.items() if keep(key)}, path)
    return str(path)


def test_every_checkpoint_records_its_fingerprint(trained):
    for kind, file in trained.items():
        layers = torch.load(file, weights_only=False)['meta']['fingerprint']
        assert layers == fingerprint(Model(kind))
    assert layers['backbone.bn1'] == {
        'norm': 'BCN', 'groups': 2, 'affine': 'group', 'eps': 1e-5, 'rate': 0.1, 'statistics': 'estimated'
    }  # fmt: skip


@pytest.mark.parametrize('kind', ['bn', 'gn', 'gn-ws', 'bcn-ws'])
@pytest.mark.parametrize('resume', [False, True])
def test_a_checkpoint_of_the_same_kind_loads(kind, resume, trained, tmp_path):
    runner = run(tmp_path, Model(kind), load_from=trained[kind], resume=resume)
    runner.load_or_resume()
    weights = torch.load(trained[kind], weights_only=False)['state_dict']
    assert all(torch.equal(tensor, weights[key]) for key, tensor in runner.model.state_dict().items())
    assert f'the checkpoint: {kind}; the model: {kind}' in log_of(runner)


@pytest.mark.parametrize(('file', 'kind'), [('gn', 'gn-ws'), ('gn-ws', 'gn'), ('bn', 'gn'), ('bn', 'bcn-ws')])
@pytest.mark.parametrize('resume', [False, True])
def test_a_checkpoint_of_another_kind_is_rejected(file, kind, resume, trained, tmp_path):
    runner = run(tmp_path, Model(kind), load_from=trained[file], resume=resume)
    with pytest.raises(ValueError, match=f'^the checkpoint is {file}, the model {kind}: 2 x (conv|norm) '):
        runner.load_or_resume()


def test_the_error_names_the_difference_and_a_remedy(trained, tmp_path):
    message = (
        'the checkpoint is gn, the model gn-ws: 2 x conv plain in the checkpoint, WS in the model (the first: '
        'conv1.conv). Weights do not work under another norm or another WS than in training: use the recipe of the '
        'checkpoint, or start from weights of the same kind (docs/pretrained.md). To load the matching entries anyway: '
        '--cfg-options allow_norm_mismatch=True'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        run(tmp_path, Model('gn-ws'), load_from=trained['gn']).train()
    assert not list(tmp_path.glob('*.pth'))


def test_matching_entries_are_loaded_on_request(trained, tmp_path):
    runner = run(tmp_path, Model('gn-ws'), load_from=trained['gn'], allow_norm_mismatch=True)
    runner.load_or_resume()
    assert 'Loaded anyway (allow_norm_mismatch=True)' in log_of(runner)
    weights = torch.load(trained['gn'], weights_only=False)['state_dict']
    assert torch.equal(runner.model.backbone.conv1.weight, weights['backbone.conv1.weight'])


def test_a_foreign_file_is_rejected_by_a_model_with_ws_and_logged_by_one_without(trained, tmp_path):
    file = unstamped(trained['gn'], tmp_path)
    message = (
        'the checkpoint (gn or gn-ws) does not record whether its filters were trained with Weight Standardization, '
        'as the model (gn-ws) requires: convert it with tools/convert_checkpoint.py (docs/pretrained.md). To load the '
        'matching entries anyway: --cfg-options allow_norm_mismatch=True'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        run(tmp_path / 'ws', Model('gn-ws'), load_from=file).load_or_resume()
    runner = run(tmp_path / 'plain', Model('gn'), load_from=file)
    runner.load_or_resume()
    assert 'the checkpoint: gn or gn-ws, assumed to be trained without WS; the model: gn' in log_of(runner)


def test_part_of_a_backbone_is_rejected_and_another_head_is_logged(trained, tmp_path):
    file = unstamped(trained['gn'], tmp_path, keep=lambda key: 'layer1' not in key)
    with pytest.raises(ValueError, match=r'^the checkpoint: only 50 % of the backbone would be loaded'):
        run(tmp_path / 'part', Model('gn'), load_from=file).load_or_resume()
    runner = run(tmp_path / 'head', Model('gn', classes=3), load_from=trained['gn'])
    runner.load_or_resume()
    assert re.search(r'fc +0 +0 +2 +0', log_of(runner))
    assert 'of another shape: fc.weight (2, 4), must be (3, 4), fc.bias (2,), must be (3,)' in log_of(runner)


def test_a_run_of_another_model_is_not_resumed(trained, tmp_path):
    message = (
        "the checkpoint to resume from belongs to another model: it lacks 1 entries of the recipe's (the first: scale) "
        'and has 0 others (the first: none). To start from the matching weights, use --cfg-options load_from=FILE '
        'instead of --resume'
    )
    model = Model('gn')
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        run(tmp_path, model, load_from=trained['gn'], resume=True).load_or_resume()


def start(file, prefix=None):
    return dict(type='Pretrained', checkpoint=file) | ({'prefix': prefix} if prefix else {})


def test_weights_that_an_init_cfg_names_are_checked_too(trained, tmp_path):
    init = start(trained['gn-ws'], 'backbone.')
    runner = run(tmp_path / 'same', Model('gn-ws', init_cfg=init))
    runner.train()
    log = log_of(runner)
    assert f'{trained["gn-ws"]}: gn-ws; the model: gn-ws' in log
    assert f'{trained["gn-ws"]}: 6 entries match' in log
    with pytest.raises(ValueError, match=f'^{re.escape(trained["gn-ws"])} is gn-ws, the model gn: 2 x conv WS '):
        run(tmp_path / 'other', Model('gn', init_cfg=init)).train()


def test_an_init_cfg_whose_keys_match_nothing_is_rejected(trained, tmp_path):
    """mmengine loads by key: without its prefix, the file of a whole model leaves a backbone uninitialised."""
    message = f'{trained["gn"]}: only 0 % of the backbone would be loaded'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
        run(tmp_path, Model('gn', init_cfg=start(trained['gn']))).train()


def test_an_init_cfg_is_not_checked_where_a_checkpoint_replaces_it(trained, tmp_path):
    model = Model('gn', init_cfg=start(trained['bn'], 'backbone.'))
    run(tmp_path, model, load_from=trained['gn']).train()


def test_an_init_cfg_is_checked_where_there_is_nothing_to_resume_from(trained, tmp_path):
    model = Model('gn', init_cfg=start(trained['bn'], 'backbone.'))
    with pytest.raises(ValueError, match=f'^{re.escape(trained["bn"])} is bn, the model gn: 2 x norm BN '):
        run(tmp_path, model, resume=True).train()
