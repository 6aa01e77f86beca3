"""NonFiniteHook through real Runners: what it says, what it keeps, and what it lets pass."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

import wsbcn_mm.engine.hooks  # noqa: F401  registers the hook
from wsbcn_mm.engine.guards.non_finite import NonFiniteError, NonFiniteHook, losses_in, sample_names, told
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d


class Pictures(Dataset):
    """Random pictures; those in `bright` are so bright that a square is infinite."""

    def __init__(self, bright=()):
        self.bright = bright

    def __len__(self):
        return 20

    def __getitem__(self, index):
        x = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(index))
        sample = BaseDataElement(metainfo=dict(img_path=f'images/{index}.png', sample_idx=index))
        return dict(inputs=x * 1e25 if index in self.bright else x, data_samples=sample)


class Square(nn.Module):
    def forward(self, x):
        return x * x


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.square, self.norm = nn.Conv2d(3, 8, 3), Square(), BatchChannelNorm(8, 2)
        self.root = False

    def init_weights(self):
        """Keeps what __init__ made."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.norm(self.square(self.conv(torch.stack(inputs))))
        loss = (out - 1).square().mean()
        if self.root:  # of 0: finite, but its gradient is not
            loss = loss + (0 * out).abs().sum().sqrt()
        return dict(loss_square=loss, acc=loss.detach() * float('nan'))


class Scaled(OptimWrapper):
    """What AmpOptimWrapper is to its scaler, without a GPU."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=8.0)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update()


def runner_of(folder, *, iters, bright=(), wrapper=OptimWrapper, interval=2, hooks=(), **settings):
    return Runner(
        Toy(),
        str(folder),
        train_dataloader=dict(
            batch_size=1,
            dataset=Pictures(bright),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(type=wrapper, optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=interval),
        ),
        custom_hooks=[dict(type='StepStatisticsHook'), dict(type='NonFiniteHook', **settings), *hooks],
        experiment_name=f'{folder.parent.name}-{folder.name}',
    )


def log_of(runner):
    return '\n'.join(file.read_text() for file in Path(runner.work_dir).glob('*/*.log'))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_loss_that_is_no_number_stops_before_it_does_harm_and_says_where_it_comes_from(tmp_path):
    runner = runner_of(tmp_path, iters=20, bright=[6])
    with pytest.raises(NonFiniteError) as error:
        runner.train()
    lines = str(error.value).splitlines()
    assert re.fullmatch(r'iteration 7: loss_square is (nan|inf)', lines[0])
    assert lines[1] == 'samples: images/6.png (sample 6)'
    assert lines[2] == 'the first module with a non-finite output: square, Square()'
    assert re.fullmatch(r'  input        float32, -\d\S+e\+2\d to \d\S+e\+2\d', lines[3])
    assert 'not finite' in lines[4] or 'none of 128 finite' in lines[4]
    assert lines[5].startswith('running statistics of 1 norms: running_mean float32, ')
    assert lines[6] == f'The last good checkpoint is {tmp_path / "iter_6.pth"}'
    assert str(error.value) in log_of(runner)
    kept = torch.load(tmp_path / 'iter_6.pth', weights_only=True)['state_dict']
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_2.pth', 'iter_4.pth', 'iter_6.pth']
    assert all(torch.equal(p, kept[name]) for name, p in weights(runner.model).items())
    assert all(tensor.isfinite().all() for tensor in runner.model.state_dict().values())


def test_a_micro_batch_of_an_accumulation_stops_the_run_before_the_step(tmp_path):
    runner = runner_of(tmp_path, iters=20, bright=[5], interval=4)
    runner.optim_wrapper['accumulative_counts'] = 4
    with pytest.raises(NonFiniteError, match=r'^iteration 6: loss_square is (nan|inf)\nsamples: images/5.png '):
        runner.train()
    kept = torch.load(tmp_path / 'iter_4.pth', weights_only=True)['state_dict']
    assert all(torch.equal(p, kept[name]) for name, p in weights(runner.model).items())


def test_every_loss_of_every_head_is_looked_at():
    nan = torch.tensor(float('nan'))
    outputs = {'decode.loss_ce': torch.ones(()), 'aux_1.loss_ce': [torch.ones(2), nan], 'decode.acc_seg': nan}
    assert told(losses_in(outputs)) == 'aux_1.loss_ce.1 is nan'


class BadGradient(Hook):
    """A finite loss in some iterations, by default in the fourth, whose gradient is none."""

    def __init__(self, iterations=(3,)):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.root = batch_idx in self.iterations


@pytest.mark.parametrize('interval', [2, 3])
def test_a_step_with_such_gradients_is_found_before_it_is_saved_or_in_the_next_iteration(tmp_path, interval):
    runner = runner_of(tmp_path, iters=20, interval=interval, hooks=[BadGradient()])
    with pytest.raises(NonFiniteError) as error:
        runner.train()
    text = str(error.value)
    good = tmp_path / f'iter_{interval}.pth'
    if interval == 2:
        first = 'the checkpoint of iteration 4 is not written: 6 of its 9 entries are not finite (the first: conv.'
        assert text.startswith(first)
        assert text.endswith(f'. The last good checkpoint is {good}')
    else:
        assert text.splitlines()[0] == 'iteration 5: loss_square is nan'
        assert re.search(
            r'^6 weights were not finite before this iteration \(the first: conv.weight\): the gradients '
            r'of the step before were not$',
            text,
            re.MULTILINE,
        )
        assert 'the first module with a non-finite output: conv, Conv2d(' in text
        assert text.endswith(f'The last good checkpoint is {good}')
    assert [path.name for path in tmp_path.glob('*.pth')] == [good.name]


def test_a_gradient_scaler_may_pass_over_an_overflow(tmp_path):
    straight = runner_of(tmp_path / 'without', iters=2, wrapper=Scaled)
    straight.train()
    runner = runner_of(tmp_path / 'with', iters=3, bright=[2], wrapper=Scaled)
    runner.train()
    warned = r'iteration 3: loss_square is (nan|inf); the gradient scaler skips the step \(1 in a row, 3 are tole'
    assert re.search(warned, log_of(runner))
    assert runner.optim_wrapper.loss_scaler.get_scale() == 4.0
    before, after = straight.model.state_dict(), runner.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_overflows_in_a_row_are_not_tolerated_for_ever(tmp_path):
    runner = runner_of(tmp_path, iters=20, bright=[2, 4, 5], wrapper=Scaled, tolerance=1)
    with pytest.raises(NonFiniteError, match=r'^iteration 6: loss_square is (nan|inf), 2 in a row\n'):
        runner.train()
    assert len(re.findall('skips the step', log_of(runner))) == 2


def test_steps_that_the_scaler_leaves_out_are_not_tolerated_for_ever(tmp_path):
    """One bad micro-batch of two is enough to lose a step; two good steps begin the count anew."""
    bad = BadGradient([1, 2, *range(7, 20)])
    runner = runner_of(tmp_path, iters=20, wrapper=Scaled, hooks=[bad], skipped_steps=2)
    runner.optim_wrapper['accumulative_counts'] = 2
    with pytest.raises(NonFiniteError) as error:
        runner.train()
    assert str(error.value) == (
        'iteration 12: the gradient scaler skipped 3 optimizer steps in a row (2 are tolerated), the last at a '
        'scale of 0.25: some gradients are not finite at any scale. --amp bf16 needs no scaler. The last good '
        f'checkpoint is {tmp_path / "iter_10.pth"}'
    )
    assert str(error.value) in log_of(runner)
    assert all(tensor.isfinite().all() for tensor in runner.model.state_dict().values())


def fake_runner(model, **cfg):
    said = SimpleNamespace(error=lambda text: None)
    return SimpleNamespace(model=model, cfg=cfg, iter=4, logger=said, work_dir='/nowhere', optim_wrapper=None)


def test_a_compiled_model_is_looked_at_after_the_step():
    hook, runner = NonFiniteHook(), fake_runner(nn.Linear(2, 2), compile=True)
    hook.before_train(runner)
    hook.after_train_iter(runner, 4, outputs=dict(loss=torch.tensor(1.0), acc=torch.tensor(float('nan'))))
    with pytest.raises(NonFiniteError) as error:
        hook.after_train_iter(runner, 4, outputs=dict(loss=torch.tensor(float('nan'))))
    assert 'the model is compiled: run it without compile to find the first such module' in str(error.value)


def test_norms_that_would_wait_for_other_ranks_are_not_run_again(monkeypatch):
    monkeypatch.setattr('wsbcn_mm.engine.guards.non_finite.get_world_size', lambda: 2)
    model = nn.Sequential(BatchChannelNorm(4, 2, statistics='sync'))
    (line,) = NonFiniteHook()._first_bad_module(model, lambda: pytest.fail('it was run'))
    assert line == 'not run again: its norms would wait for the other ranks; a run on one process finds the module'


def test_float16_that_overflows_in_a_standardised_convolution_gets_a_hint():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), WSConv2d(512, 2, 3).half())
    x = torch.full((1, 512, 3, 3), 6e4).half() * torch.randn(1, 512, 3, 3).half().sign()
    _, hint = '\n'.join(NonFiniteHook()._first_bad_module(model, lambda: model(-x))).rsplit('\n', 1)
    assert hint == "  float16 ends at 65504: --amp bf16 does not, and gain='fan_in' in its conv_cfg keeps outputs small"
    with_gain = nn.Sequential(nn.ReLU(), WSConv2d(512, 2, 3, gain='fan_in').half())
    assert list(NonFiniteHook()._first_bad_module(with_gain, lambda: with_gain(x))) == [
        'the batch gives finite values when it is run again: the cause is a random part, or the loss'
    ]


def test_samples_without_a_name():
    assert sample_names(dict(inputs=torch.zeros(1))) == []
    clip = BaseDataElement(metainfo=dict(path='a.mp4'))
    assert sample_names(dict(data_samples=[clip, BaseDataElement()])) == ['a.mp4', 'unnamed']


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match=r'^tolerance=-1: 0 or more iterations are expected$'):
        NonFiniteHook(tolerance=-1)
    with pytest.raises(ValueError, match=r'^skipped_steps=-2: 0 or more steps are expected$'):
        NonFiniteHook(skipped_steps=-2)
