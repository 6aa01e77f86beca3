"""BNStartHook through real Runners, files and resumed runs."""

from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from wsbcn_mm.engine.hooks import BNStartHook
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d


class Points(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return dict(inputs=torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index)))


class Model(BaseModel):
    def __init__(self, kind='bcn-ws'):
        super().__init__()
        torch.manual_seed(0)
        conv = WSConv2d if kind == 'bcn-ws' else nn.Conv2d
        norm = nn.BatchNorm2d if kind == 'bn' else lambda channels: BatchChannelNorm(channels, 2, warmup=True)
        self.net = nn.Sequential(
            conv(3, 8, 3, bias=False), norm(8), nn.ReLU(), conv(8, 4, 3, bias=False), norm(4), nn.ReLU()
        )
        self.head = nn.Conv2d(4, 1, 1)

    def init_weights(self):
        """Keeps what __init__ made."""

    def forward(self, inputs, mode='tensor'):
        out = self.head(self.net(inputs))
        return dict(loss=out.square().mean() - out.mean()) if mode == 'loss' else [dict(out=o) for o in out]


class Outputs(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample['out'].sum() for sample in data_samples]

    def compute_metrics(self, results):
        return dict(out=float(torch.stack(results).double().sum()))


class EvaluateFirst(Hook):
    priority = 'LOWEST'

    def before_train(self, runner):
        self.score = runner.val_loop.run()['out']


def runner_of(folder, model, *hooks, iters=8, interval=100, **settings):
    loader = dict(
        batch_size=2,
        dataset=Points(),
        sampler=dict(type='InfiniteSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    test = dict(
        dataloader=loader | dict(sampler=dict(type='DefaultSampler', shuffle=False)),
        cfg=dict(),
        evaluator=Evaluator(Outputs()),
    )
    return Runner(
        model,
        str(folder),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=iters, val_interval=1000),
        **{f'{name}_{key}': value for name in ('val', 'test') for key, value in test.items()},
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=interval),
        ),
        custom_hooks=[dict(type='CheckpointGuardHook'), dict(type='StepStatisticsHook'), *hooks],
        log_processor=dict(by_epoch=False),
        cfg=dict(allow_norm_mismatch=True, **settings),
        experiment_name=f'{folder.parent.name}-{folder.name}',
        **settings,
    )


def hook(**options):
    return dict(type='BNStartHook', input_shape=(2, 3, 8, 8), **options)


def log_of(runner):
    return '\n'.join(file.read_text() for file in Path(runner.work_dir).glob('*/*.log'))


def score(model):
    model.eval()
    with torch.no_grad():
        return float(torch.stack([model(Points()[i]['inputs'][None])[0]['out'].sum() for i in range(20)]).sum())


@pytest.fixture(scope='module')
def bn(tmp_path_factory):
    """A checkpoint of a model with BN, and that model."""
    folder, model = tmp_path_factory.mktemp('bn'), Model('bn')
    runner_of(folder, model, iters=15, interval=15).train()
    return str(folder / 'iter_15.pth'), model


def test_it_starts_from_the_statistics_of_bn_and_a_resumed_run_starts_only_once(bn, tmp_path):
    straight, resumed = Model(), Model()
    runner = runner_of(tmp_path / 'a', straight, hook(), iters=4, interval=2, load_from=bn[0])
    runner.train()
    log = log_of(runner)
    assert 'started from BN: 2 WS convolutions handed their scale to the norm after them, 2 BCN keep' in log
    assert 'filter means are lost' in log
    assert not any(m._forward_hooks for m in straight.modules())
    file = str(tmp_path / 'a' / 'iter_2.pth')
    again = runner_of(tmp_path / 'b', resumed, hook(), iters=4, load_from=file, resume=True)
    again.train()
    assert 'started from BN' not in log_of(again)
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_all_at_once_with_calibration(bn, tmp_path):
    first, model = EvaluateFirst(), Model()
    runner = runner_of(tmp_path, model, hook(calibration_batches=10), first, iters=1, load_from=bn[0])
    runner.train()
    log = log_of(runner)
    assert 'filter means are lost' in log
    assert '2 norms calibrated on 10 batches, 0 were not reached; the last sweep moved their means by up to' in log
    assert not any(m._forward_hooks for m in model.modules())


def test_what_is_no_start_from_bn_is_refused(bn, tmp_path):
    runner_of(tmp_path / 'a', Model(), iters=2, interval=2).train()
    file = str(tmp_path / 'a' / 'iter_2.pth')
    with pytest.raises(ValueError, match='trained with BN and without WS; the checkpoint is bcn-ws'):
        runner_of(tmp_path / 'b', Model(), hook(), load_from=file).train()
    with pytest.raises(ValueError, match='the model has no norm with trained statistics'):
        runner_of(tmp_path / 'd', Model(), hook()).train()
    with pytest.raises(ValueError, match=r'^calibration_batches=-1: 0 or more is expected$'):
        BNStartHook(calibration_batches=-1)
