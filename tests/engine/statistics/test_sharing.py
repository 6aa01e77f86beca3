"""StepStatisticsHook through real Runners that train a toy model."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

import wsbcn_mm.engine.hooks  # noqa: F401  registers the hook
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d

ROOT = Path(__file__).parents[3]
NORM = '1'


class Points(Dataset):
    """Random images, each with its own mean."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return dict(inputs=torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index)) + index / 10)


class Toy(BaseModel):
    def __init__(self, statistics='estimated', rate=0.2, frozen=False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            WSConv2d(3, 8, 3),
            BatchChannelNorm(8, 4, rate=rate, warmup=True, statistics=statistics),
            nn.Conv2d(8, 4, 1),
            BatchChannelNorm(4, 2, rate=0 if frozen else rate, statistics=statistics),
        )

    def init_weights(self):
        """Keeps what __init__ made."""

    def forward(self, inputs, mode='tensor'):
        out = self.net(inputs)
        return (
            dict(loss=(out**2 - out).mean() + (out[:, 0] ** 3).mean()) if mode == 'loss' else [dict(out=o) for o in out]
        )


class Watch(Hook):
    """Number of commits seen after every iteration, by hooks of a given priority."""

    def __init__(self, priority):
        self.priority = priority
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(int(runner.model.net[1].num_batches_tracked))


class Stop(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.train_loop.stop_training = batch_idx == 2


class CommitsAtValidation(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(seen=len(results))


def runner_of(folder, model, *, max_iters, accumulation, hooks=(), batch_size=2, interval=100, **settings):
    loader = dict(
        batch_size=batch_size,
        dataset=Points(),
        sampler=dict(type='InfiniteSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    return Runner(
        model,
        str(folder),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=False, max_iters=max_iters, val_interval=2),
        val_dataloader=loader | dict(dataset=Points(), sampler=dict(type='DefaultSampler', shuffle=False)),
        val_cfg=dict(),
        val_evaluator=Evaluator(CommitsAtValidation()),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=accumulation),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=interval),
        ),
        custom_hooks=list(hooks),
        log_processor=dict(by_epoch=False),
        # mmengine's loggers are known by experiment and second.
        experiment_name=f'{folder.parent.name}-{folder.name}',
        **settings,
    )


def log_of(runner):
    return '\n'.join(file.read_text() for file in Path(runner.work_dir).glob('*/*.log'))


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


STEPWISE = dict(type='StepStatisticsHook')


def test_commits_follow_the_optimizer_steps(tmp_path):
    """Also the last, incomplete accumulation; and hooks of ordinary priority see the buffers of after the step."""
    watches = [Watch('HIGH'), Watch('NORMAL')]
    runner = runner_of(tmp_path, Toy(), max_iters=7, accumulation=3, hooks=[*watches, STEPWISE])
    runner.train()
    assert watches[0].seen == [0, 0, 0, 1, 1, 1, 2]
    assert watches[1].seen == [0, 0, 1, 1, 1, 2, 3]
    assert '2 BCN layers move their estimates once per optimizer step' in log_of(runner)
    assert all(layer.pending_totals is None for layer in runner.model.modules() if isinstance(layer, BatchChannelNorm))


def test_without_accumulation_a_run_is_that_of_the_plain_layers(tmp_path):
    runs = [
        runner_of(tmp_path / name, Toy(), max_iters=4, accumulation=1, hooks=hooks)
        for name, hooks in (('plain', []), ('stepwise', [STEPWISE]))
    ]
    for runner in runs:
        runner.train()
    assert_equal(*(runner.model.state_dict() for runner in runs))


def test_accumulation_has_the_first_layers_statistics_of_the_whole_batch(tmp_path):
    runs = [
        runner_of(tmp_path / f'{batch}', Toy(), max_iters=2 * k, accumulation=k, batch_size=batch, hooks=[STEPWISE])
        for batch, k in ((6, 1), (2, 3))
    ]
    for runner in runs:
        runner.optim_wrapper['optimizer']['lr'] = 0.0
        runner.train()
    whole, accumulated = (buffers(runner.model.net[1]) for runner in runs)
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, atol=1e-6, rtol=1e-6, msg=name)


def test_a_run_resumed_in_the_middle_of_an_accumulation_has_the_same_buffers(tmp_path):
    straight = runner_of(tmp_path / 'straight', Toy(), max_iters=8, accumulation=4, hooks=[STEPWISE], interval=6)
    straight.train()
    file = tmp_path / 'straight' / 'iter_6.pth'
    saved = torch.load(file, weights_only=False)
    (pending,) = saved['step_statistics']
    assert {name: totals[0, 0].item() for name, totals in pending.items()} == {
        'net.1': 2 * 2 * 16,
        'net.3': 2 * 2 * 16,
    }
    assert int(saved['state_dict']['net.1.num_batches_tracked']) == 1
    resumed = runner_of(
        tmp_path / 'resumed',
        Toy(rate=0.2),
        max_iters=8,
        accumulation=4,
        hooks=[STEPWISE],
        load_from=str(file),
        resume=True,
    )
    resumed.train()
    assert_equal(buffers(resumed.model), buffers(straight.model))
    assert int(resumed.model.net[1].num_batches_tracked) == 2


def test_resuming_there_on_several_ranks_says_what_is_lost(tmp_path, monkeypatch):
    settings = dict(max_iters=4, accumulation=4, hooks=[STEPWISE])
    runner_of(tmp_path / 'first', Toy(), **settings, interval=3).train()
    file = str(tmp_path / 'first' / 'iter_3.pth')
    resumed = runner_of(tmp_path / 'resumed', Toy(), **settings, load_from=file, resume=True)
    monkeypatch.setattr(Runner, 'world_size', 3)
    resumed.train()
    assert (
        'the checkpoint was written in the middle of an accumulation and has only the pending BCN statistics of '
        'rank 0: the next step misses those of 2 other rank(s)'
    ) in log_of(resumed)


def test_a_new_run_from_a_checkpoint_starts_with_nothing_pending(tmp_path):
    first = runner_of(tmp_path / 'first', Toy(), max_iters=3, accumulation=2, hooks=[STEPWISE], interval=1)
    first.train()
    assert 'step_statistics' in torch.load(tmp_path / 'first' / 'iter_1.pth', weights_only=False)
    assert 'step_statistics' not in torch.load(tmp_path / 'first' / 'iter_2.pth', weights_only=False)
    models = []
    for name in ('iter_1', 'stripped'):
        file = tmp_path / 'first' / f'{name}.pth'
        if name == 'stripped':
            saved = torch.load(tmp_path / 'first' / 'iter_1.pth', weights_only=False)
            torch.save({'state_dict': saved['state_dict'], 'meta': saved['meta']}, file)
        run = runner_of(tmp_path / name, Toy(), max_iters=2, accumulation=2, hooks=[STEPWISE], load_from=str(file))
        run.train()
        models.append(run.model)
    assert_equal(*map(buffers, models))


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights_have_the_buffers_of_after_the_step(tmp_path, update_buffers):
    average = dict(type='EMAHook', update_buffers=update_buffers, momentum=0.5)
    runner = runner_of(tmp_path, Toy(), max_iters=2, accumulation=2, hooks=[average, STEPWISE])
    seen = []

    class BeforeEvaluation(Hook):
        priority = 'HIGHEST'

        def before_val_epoch(self, runner):
            seen.append(buffers(runner.model))

    runner.register_hook(BeforeEvaluation())
    ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    runner.train()
    averaged = buffers(ema.ema_model.module)
    assert int(averaged['net.1.num_batches_tracked']) == int(not update_buffers)
    if not update_buffers:
        assert_equal(averaged, seen[0])
    else:
        # Updated twice: copied before the first commit, then half-way to the buffers after it.
        torch.testing.assert_close(averaged['net.1.running_mean'], seen[0]['net.1.running_mean'] / 2)
    assert ema.ema_model.module.net[1].pending_totals is None


def test_matched_rate(tmp_path):
    model = Toy(frozen=True)
    runner = runner_of(
        tmp_path, model, max_iters=1, accumulation=1, hooks=[dict(type='StepStatisticsHook', match_batch=32)]
    )
    runner.train()
    assert model.net[1].rate == pytest.approx(4 / 34)
    assert model.net[3].rate == 0
    assert 'BCN rate 0.1176: as noisy as a batch of 32, from 2 sample(s) a forward and 2 a step' in log_of(runner)


def test_a_run_stopped_in_the_middle_of_an_accumulation_says_so(tmp_path):
    runner = runner_of(tmp_path, Toy(), max_iters=9, accumulation=2, hooks=[STEPWISE, Stop()])
    runner.train()
    assert int(runner.model.net[1].num_batches_tracked) == 1
    assert (
        'training stopped in the middle of an accumulation: neither its gradients nor its BCN statistics count'
        in log_of(runner)
    )


def test_models_without_estimates_are_left_alone(tmp_path):
    runner = runner_of(tmp_path, Toy(statistics='batch'), max_iters=3, accumulation=2, hooks=[STEPWISE], interval=1)
    runner.train()
    assert int(runner.model.net[1].num_batches_tracked) == 3
    assert 'optimizer step' not in log_of(runner)
    assert 'step_statistics' not in torch.load(tmp_path / 'iter_1.pth', weights_only=False)


def test_an_optimizer_wrapper_that_does_not_tell_is_refused(tmp_path):
    class TwoOptimizers(Toy):
        def train_step(self, data, optim_wrapper):
            return {}

    model = TwoOptimizers()
    runner = runner_of(tmp_path, model, max_iters=3, accumulation=1, hooks=[STEPWISE])
    runner.optim_wrapper = OptimWrapperDict(
        one=OptimWrapper(torch.optim.SGD(model.net[0].parameters(), lr=0.1)),
        other=OptimWrapper(torch.optim.SGD(model.net[2].parameters(), lr=0.1)),
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared in full
        runner.train()
    assert str(error.value) == (
        'OptimWrapperDict does not tell when it steps: leave StepStatisticsHook out, and use '
        "wsbcn_mm.microbatch.StepStatistics in the model's train_step"
    )
    assert model.net[1].pending_totals is None


@pytest.mark.parametrize('file', sorted((ROOT / 'configs').glob('*/*_bcn-ws*.py')), ids=lambda f: f.stem)
def test_recipes_with_estimates_use_it(file):
    cfg = Config.fromfile(file)
    assert [hook['type'] for hook in cfg.default_hooks.values()].count('StepStatisticsHook') == 1
