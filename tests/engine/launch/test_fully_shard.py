"""FullyShard on two gloo ranks trains what DistributedDataParallel trains, and writes the same checkpoints."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset

from wsbcn_mm.engine.hooks import SafeCheckpointHook
from wsbcn_mm.engine.launch.fully_shard import refuse_what_needs_whole_parameters
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d

WORLD, ITERATIONS, ACCUMULATION = 2, 8, 2
RUNS = {'ddp': None, 'sharded': None, 'resumed': 'sharded/iter_4.pth', 'ddp_resumed': 'sharded/iter_4.pth'}
"""Run: the checkpoint that it resumes from."""


class Images(Dataset):
    """Random images; validation has an odd number, which two ranks cannot share equally."""

    def __init__(self, length, scale=1.0):
        self.length, self.scale = length, scale

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(
            inputs=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index)) * self.scale + index / 10
        )


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = WSConv2d(channels, 6, 3, padding=1), BatchChannelNorm(6, 2)
        self.conv2, self.bn2 = WSConv2d(6, channels, 1), BatchChannelNorm(channels, 1)

    def forward(self, x):
        return x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


class Toy(BaseModel):
    """Numbers of channels that two ranks cannot halve, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.stem = WSConv2d(3, 7, 3)
        self.blocks = nn.Sequential(Block(7), Block(7))
        self.head = nn.Conv2d(7, 1, 1)
        self.stem.requires_grad_(False)

    def init_weights(self):
        torch.manual_seed(int(os.environ['RANK']))
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.5)

    def forward(self, inputs, mode='tensor'):
        out = self.head(self.blocks(self.stem(inputs)))
        return dict(loss=(out - 1).square().mean()) if mode == 'loss' else [dict(out=one) for one in out]


class Mean(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(sample['out'].mean()) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(mean=sum(results))


def train(folder, name, scale=1.0):
    resumed = RUNS.get(name)
    sharded = not name.startswith('ddp')
    loader = dict(
        batch_size=1,
        dataset=Images(40, scale),
        sampler=dict(type='InfiniteSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    wrapper = dict(type='FullyShard') if sharded else dict(type='MMDistributedDataParallel', device_ids=None)
    runner = Runner(
        Toy(),
        f'{folder}/{name}',
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=ITERATIONS, val_interval=4),
        val_dataloader=loader | dict(dataset=Images(3), sampler=dict(type='DefaultSampler', round_up=False)),
        val_cfg=dict(),
        val_evaluator=Evaluator(Mean()),
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-2),
            accumulative_counts=ACCUMULATION,
            clip_grad=dict(max_norm=1.0),
        ),
        default_hooks=dict(
            checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=4, save_best='mean', rule='less')
        ),
        custom_hooks=[
            dict(type='StepStatisticsHook'),
            dict(type='StandardizedWeightHook'),
            dict(type='NonFiniteHook'),
            *([dict(type='FullyShardHook')] if sharded else []),
        ],
        log_processor=dict(by_epoch=False),
        launcher='pytorch',
        load_from=resumed and f'{folder}/{resumed}',
        resume=bool(resumed),
        randomness=dict(seed=0),
        experiment_name=name,
        cfg=Config(dict(model_wrapper_cfg=wrapper)),
    )
    runner.train()
    return runner


def worker(rank, folder):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD))
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD)
    for name in RUNS:
        runner = train(folder, name)
        kinds = {p: isinstance(q, DTensor) for p, q in runner.model.named_parameters()}
        torch.save(
            (kinds, sum(q.to_local().numel() for q in runner.model.parameters() if isinstance(q, DTensor))),
            f'{folder}/{name}_{rank}.pt',
        )
    dist.barrier()
    # The last run fails only on rank 1, in the first iteration. Rank 0 fails when the process of rank 1 has exited.
    try:
        train(folder, 'bright', scale=1e30 if rank else 1.0)
    except RuntimeError as error:
        Path(f'{folder}/bright_{rank}.txt').write_text(f'{type(error).__name__}: {error}')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fully_shard')
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=WORLD)
    return folder


def load(folder, name, iteration=ITERATIONS):
    return torch.load(folder / name / f'iter_{iteration}.pth', weights_only=True)


@pytest.mark.parametrize('name', ['sharded', 'resumed', 'ddp_resumed'])
def test_weights_statistics_and_momenta_are_those_of_data_parallel(name, folder):
    found, expected = load(folder, name), load(folder, 'ddp')
    start = load(folder, 'ddp', 4)['state_dict']
    assert list(found['state_dict']) == list(expected['state_dict'])
    for key, value in expected['state_dict'].items():
        torch.testing.assert_close(found['state_dict'][key], value, atol=1e-6, rtol=1e-6, msg=key)
    assert any((start[key] - value).abs().max() > 1e-2 for key, value in expected['state_dict'].items())
    momenta, others = found['optimizer']['state'], expected['optimizer']['state']
    assert momenta.keys() == others.keys()
    for key, state in others.items():
        torch.testing.assert_close(momenta[key]['momentum_buffer'], state['momentum_buffer'], atol=1e-6, rtol=1e-6)


def test_each_rank_has_its_share_of_every_parameter(folder):
    total = sum(parameter.numel() for parameter in Toy().parameters())
    (kinds, own), (_, others) = (torch.load(folder / f'sharded_{rank}.pt') for rank in range(WORLD))
    assert all(kinds.values())
    assert own + others == total
    assert max(own, others) < 0.8 * total
    assert not any(torch.load(folder / 'ddp_0.pt')[0].values())


def test_the_checkpoint_loads_without_shards(folder):
    Toy().load_state_dict(load(folder, 'sharded')['state_dict'], strict=True)
    (best,) = (folder / 'sharded').glob('best_mean_*.pth')
    Toy().load_state_dict(torch.load(best, weights_only=True)['state_dict'], strict=True)


def test_a_non_finite_loss_on_one_rank_ends_all_ranks_without_gathering_shards(folder):
    other, bad = ((folder / f'bright_{rank}.txt').read_text() for rank in range(WORLD))
    assert re.match(r'NonFiniteError: iteration 1 on rank 1: loss is (nan|inf)\n', bad)
    assert '\nnot run again: its shards would wait for the other ranks; a run on one process finds the module\n' in bad
    assert re.match(r'RuntimeError: .*Connection (closed|reset)', other)


def runner_with(*hooks, wrapper=OptimWrapper, accumulation=1):
    loader = SimpleNamespace(batch_size=1)
    optim_wrapper = wrapper.__new__(wrapper)
    optim_wrapper._accumulative_counts = accumulation
    return SimpleNamespace(hooks=hooks, optim_wrapper=optim_wrapper, world_size=2, train_dataloader=loader)


@pytest.mark.parametrize(
    ('runner', 'reason'),
    [
        (runner_with(wrapper=OptimWrapperDict), 'OptimWrapperDict has several optimizers'),
        (runner_with(EMAHook()), 'EMAHook averages whole parameters'),
        (
            runner_with(CheckpointHook()),
            'CheckpointHook would save only the shards of rank 0: use SafeCheckpointHook',
        ),
        (
            runner_with(SafeCheckpointHook(by_epoch=False, interval=3), accumulation=2),
            'checkpoints every 3 iterations interrupt accumulations of 2',
        ),
    ],
)
def test_features_that_need_whole_parameters_are_rejected(runner, reason):
    message = f"model_wrapper_cfg type='FullyShard' does not support this recipe: {reason}"
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        refuse_what_needs_whole_parameters(runner)
