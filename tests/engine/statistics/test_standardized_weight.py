"""The hook in a real Runner: as many standardisations as it promises, and nothing else changes."""

import copy

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from wsbcn_mm.engine.hooks import StandardizedWeightHook
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d, kept_weight, ws_conv


class Images(Dataset):
    """Random images; every Runner sees the same."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return dict(inputs=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index)))


class Net(BaseModel):
    """Two WS convolutions, one of them called twice: three standardisations per forward, or two."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = WSConv2d(3, 8, 3, bias=False), BatchChannelNorm(8, 4)
        self.shared = WSConv2d(8, 8, 3, padding=1)

    def forward(self, inputs, mode='tensor'):
        out = self.norm(self.stem(inputs))
        out = self.shared(self.shared(out).relu() / 10)
        return dict(loss=(out**2 - out).mean()) if mode == 'loss' else [dict(out=one) for one in out]


class Outputs(BaseMetric):
    """What the network gave, to the last bit."""

    def __init__(self):
        super().__init__()
        self.evaluations = []

    def process(self, data_batch, data_samples):
        self.results += [sample['out'].clone() for sample in data_samples]

    def compute_metrics(self, results):
        self.evaluations.append(torch.stack(results))
        return {}


class RecordEMA(Hook):
    """That the raw weights under evaluation are the averaged ones, and the trained ones again after it."""

    priority = 'LOWEST'

    def __init__(self):
        self.weights = dict(before=[], during=[], after=[])

    def before_val(self, runner):
        self.weights['before'].append(runner.model.stem.weight.detach().clone())

    def before_val_epoch(self, runner):
        self.weights['during'].append(runner.model.stem.weight.detach().clone())

    def after_val(self, runner):
        self.weights['after'].append(runner.model.stem.weight.detach().clone())


class NothingKept(Hook):
    """That no standardised weight is kept where EMAHook, of lower priority, exchanges the raw ones."""

    priority = 'HIGH'

    def before_val_epoch(self, runner):
        assert runner.model.stem.kept_weight is None

    def after_val_epoch(self, runner, metrics=None):
        assert runner.model.stem.kept_weight is None


@pytest.fixture
def standardised(monkeypatch):
    """Shapes of all weights standardised so far."""
    shapes = []
    for module in (kept_weight, ws_conv):
        name = 'standardize' if module is kept_weight else 'weight_standardize'
        original = getattr(module, name)

        def counted(weight, *args, _original=original, **kwargs):
            shapes.append(tuple(weight.shape))
            return _original(weight, *args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    return shapes


def train(tmp_path, hooks, *, accumulation=1, iterations=6, val_interval=100, optimizer=None):
    torch.manual_seed(0)
    metric = Outputs()
    loader = dict(batch_size=1, dataset=Images(), collate_fn=dict(type='default_collate'))
    runner = Runner(
        Net(),
        str(tmp_path),
        train_dataloader=loader | dict(sampler=dict(type='InfiniteSampler', shuffle=False)),
        train_cfg=dict(by_epoch=False, max_iters=iterations, val_interval=val_interval),
        val_dataloader=loader | dict(sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=Evaluator(metric),
        optim_wrapper=dict(optimizer=optimizer or dict(type='SGD', lr=0.1), accumulative_counts=accumulation),
        default_hooks=dict(checkpoint=None),
        custom_hooks=hooks,
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=0),
        experiment_name=f'{tmp_path.name}-{len(hooks)}',
    )
    runner.train()
    assert all(module.kept_weight is None for module in (runner.model.stem, runner.model.shared))
    return runner.model, metric.evaluations


HOOK = dict(type=StandardizedWeightHook.__name__)


def test_once_per_optimizer_step_under_accumulation(tmp_path, standardised):
    train(tmp_path, [HOOK], accumulation=3, iterations=8)
    # Steps after iterations 3, 6 and 8, the last with what there is, and the evaluation at the end.
    assert len(standardised) == 3 * 2 + 2


def test_without_accumulation_nothing_is_kept_in_training(tmp_path, standardised):
    train(tmp_path, [HOOK], accumulation=1, iterations=4)
    assert len(standardised) == 4 * 3 + 2


def test_once_per_evaluation(tmp_path, standardised):
    train(tmp_path, [HOOK], accumulation=4, iterations=4, val_interval=4)
    # One accumulation, one evaluation of six images.
    assert len(standardised) == 2 + 2


@pytest.mark.parametrize('ema', ['ExponentialMovingAverage', 'StochasticWeightAverage'])
def test_an_evaluation_in_the_middle_of_an_accumulation_sees_the_averaged_weights(tmp_path, ema):
    """EMAHook exchanges weights through `.data`, unseen: outputs equal those without the hook, before and after."""
    plain, hooked = (
        train(
            tmp_path,
            [*own, NothingKept(), dict(type='EMAHook', ema_type=ema), (record := RecordEMA())],
            accumulation=4,
            iterations=12,
            val_interval=3,
        )
        for own in ([], [HOOK])
    )
    assert len(plain[1]) == len(hooked[1]) == 4
    for expected, out in zip(plain[1], hooked[1], strict=True):
        assert torch.equal(out, expected)
    for name, weight in plain[0].state_dict().items():
        assert torch.equal(hooked[0].state_dict()[name], weight), name
    before, during, after = record.weights.values()
    assert not torch.equal(during[-1], before[-1])
    assert torch.equal(after[-1], before[-1])


@pytest.mark.parametrize(
    'optimizer',
    [
        dict(type='SGD', lr=0.1, momentum=0.9),
        dict(type='SGD', lr=0.1, foreach=True),
        dict(type='AdamW', lr=0.01, fused=True),
    ],
    ids=['sgd', 'sgd-foreach', 'adamw-fused'],
)
def test_training_is_bit_equal_with_and_without(tmp_path, optimizer):
    plain, hooked = (
        train(tmp_path, hooks, accumulation=2, val_interval=3, optimizer=copy.deepcopy(optimizer))
        for hooks in ([], [HOOK])
    )
    for name, weight in plain[0].state_dict().items():
        assert torch.equal(hooked[0].state_dict()[name], weight), name
    assert all(map(torch.equal, plain[1], hooked[1]))
    assert nn.utils.parameters_to_vector(hooked[0].parameters()).isfinite().all()


def test_an_evaluation_alone(tmp_path, standardised):
    loader = dict(
        batch_size=2,
        dataset=Images(),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    runner = Runner(
        Net(),
        str(tmp_path),
        test_dataloader=loader,
        test_cfg=dict(),
        test_evaluator=Evaluator(Outputs()),
        default_hooks=dict(checkpoint=None),
        custom_hooks=[HOOK, dict(type='EMAHook')],
        experiment_name=tmp_path.name,
    )
    runner.test()
    assert sorted(standardised) == [(8, 3, 3, 3), (8, 8, 3, 3)]
    assert runner.model.stem.kept_weight is None
