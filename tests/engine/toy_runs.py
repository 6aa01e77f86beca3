"""A model with two norms, a Runner that trains it in a moment, and what it validated with."""

from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import wsbcn_mm.engine.hooks  # noqa: F401  registers them
from wsbcn_mm.engine.resume.seeded_samples import SeededSamples
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d

OWN_HOOKS = [dict(type=name) for name in ('IterationSeedHook', 'StepStatisticsHook', 'AccumulatedGradientsHook')]
NORMS = ('net.1', 'net.4')
STATISTICS = tuple(f'{name}.running_{of}' for name in NORMS for of in ('mean', 'var'))


class Points(Dataset):
    """Random images, each with a mean of its own, and with noise anew whenever they are drawn."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 6, 6, generator=generator) + 2 * torch.randn(3, 1, 1, generator=generator)
        return dict(inputs=image + 0.1 * torch.randn(3, 6, 6))


class Toy(BaseModel):
    def __init__(self, norm='bcn', rate=0.2):
        super().__init__()
        torch.manual_seed(0)
        make = {
            'bcn': lambda channels: BatchChannelNorm(channels, 2, rate=rate, warmup=True),
            'bn': lambda channels: nn.BatchNorm2d(channels, momentum=rate),
            'gn': lambda channels: nn.GroupNorm(2, channels),
        }[norm]
        self.net = nn.Sequential(
            WSConv2d(3, 8, 3), make(8), nn.ReLU(), nn.Conv2d(8, 4, 1), make(4), nn.Dropout(0.1), nn.Conv2d(4, 2, 1)
        )

    def init_weights(self):
        """Keeps what __init__ made."""

    def forward(self, inputs, mode='tensor'):
        out = self.net(inputs)
        return dict(loss=(out**2 - out).mean()) if mode == 'loss' else [dict(out=o) for o in out]


class Outputs(BaseMetric):
    """State of the model, and sum of its outputs, in every validation."""

    def __init__(self, model):
        super().__init__()
        self.model, self.states, self.sums = model, [], []

    def process(self, data_batch, data_samples):
        if not self.results:
            self.states.append(state_of(self.model))
        self.results += [sample['out'].sum() for sample in data_samples]

    def compute_metrics(self, results):
        self.sums.append(float(torch.stack(results).double().sum()))
        return dict(out=self.sums[-1])


def runner_of(folder, model, *hooks, iters, accumulation=1, batch_size=2, interval=100, val_interval=100, **settings):
    """A Runner that resumes exactly, with `hooks` beside its own; `runner.outputs` is its metric."""
    loader = dict(
        batch_size=batch_size,
        dataset=SeededSamples(Points()),
        sampler=dict(type='GlobalOrderSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    outputs = Outputs(model)
    runner = Runner(
        model,
        str(folder),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=iters, val_interval=val_interval),
        val_dataloader=loader | dict(sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=Evaluator(outputs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), accumulative_counts=accumulation),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=interval),
        ),
        custom_hooks=[*map(dict, OWN_HOOKS), *hooks],
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        # mmengine's loggers are known by experiment and second.
        experiment_name=f'{folder.parent.name}-{folder.name}',
        **settings,
    )
    runner.outputs = outputs
    return runner


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def log_of(runner):
    return '\n'.join(file.read_text() for file in Path(runner.work_dir).glob('*/*.log'))


def load(file):
    return torch.load(file, weights_only=True)


def assert_equal(left, right, names=None):
    assert left.keys() == right.keys()
    for name in names or left:
        assert torch.equal(left[name], right[name]), name


def assert_close(left, right, names):
    for name in names:
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5, msg=name)
