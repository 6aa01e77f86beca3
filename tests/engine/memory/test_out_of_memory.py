"""Out-of-memory errors in every stage of a real Runner, and their explanation."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from tests.engine.toy_runs import Outputs, Points, Toy, runner_of
from wsbcn_mm.engine.memory import out_of_memory
from wsbcn_mm.engine.memory.out_of_memory import advice, explaining_out_of_memory, is_out_of_memory, stage_of
from wsbcn_mm.engine.memory.plan import RecipeMemory
from wsbcn_mm.microbatch.memory_plan import Choice, StepMemory

CUDA_ERROR = 'CUDA out of memory. Tried to allocate 2.00 GiB'
MIB = 2**20


class RunsOut(torch.autograd.Function):
    """Raise an out-of-memory error in the forward or in the backward pass."""

    @staticmethod
    def forward(ctx, x, when):
        ctx.when = when
        if when == 'forward':
            raise torch.OutOfMemoryError(CUDA_ERROR)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if ctx.when == 'backward':
            raise torch.OutOfMemoryError(CUDA_ERROR)
        return grad, None


class Greedy(nn.Module):
    def __init__(self, when):
        super().__init__()
        self.when, self.calls = when, 0

    def forward(self, x):
        if self.when == 'recomputation':
            return checkpoint(self.twice, x, use_reentrant=False)
        evaluates = self.when in ('validation', 'test') and not self.training
        return RunsOut.apply(x, 'forward' if evaluates else self.when)

    def twice(self, x):
        self.calls += 1
        x = RunsOut.apply(x, 'forward' if self.calls == 2 else None)
        return x * x


class GreedyStep(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ('when', 'stage'),
    [
        ('forward', 'training, forward pass of net.3'),
        ('backward', 'training, backward pass'),
        ('recomputation', 'training, backward pass, recomputation of net.3'),
        ('step', 'training, optimizer step'),
        ('validation', 'validation, forward pass of net.3'),
        ('test', 'the test, forward pass of net.3'),
    ],
)
def test_the_stage_is_read_from_where_the_error_came_from(when, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(out_of_memory, 'advice', lambda cfg, recipe, where, available: ['(advice)'])
    model = Toy()
    model.net[3] = nn.Sequential(model.net[3], Greedy(when))
    test = dict(test_dataloader=DataLoader(Points()), test_cfg=dict(), test_evaluator=Evaluator(Outputs(model)))
    runner = runner_of(tmp_path, model, iters=2, val_interval=1, **test)
    if when == 'step':
        runner.optim_wrapper = dict(optimizer=dict(type=GreedyStep, lr=0.1))
    with pytest.raises((torch.OutOfMemoryError, RuntimeError)) as error, explaining_out_of_memory(Config(), 'a.py'):
        runner.test() if when == 'test' else runner.train()
    stage = stage.replace('net.3', 'net.3.1')
    text = str(error.value)
    assert text.endswith(f'\n\nOut of memory in {stage}.\n(advice)')
    assert text.startswith('[enforce fail' if when == 'step' else CUDA_ERROR)
    assert type(error.value) is (RuntimeError if when == 'step' else torch.OutOfMemoryError)


def test_other_errors_do_not_change():
    with pytest.raises(RuntimeError, match=r'^mat1 and mat2 shapes'), explaining_out_of_memory(Config(), 'a.py'):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError('CUDA error: out of memory'))
    assert not is_out_of_memory(RuntimeError('another error'))
    assert stage_of(None) == 'the start, before the first iteration'


def test_a_numpy_array_that_does_not_fit_is_explained_too(monkeypatch):
    """numpy raises a subclass of MemoryError that does not accept a text."""
    monkeypatch.setattr(out_of_memory, 'advice', lambda cfg, recipe, where, available: ['(advice)'])
    with pytest.raises(MemoryError) as error, explaining_out_of_memory(Config(), 'a.py'):
        np.empty(2**57)
    first, _, where, advised = str(error.value).splitlines()
    assert first.startswith('Unable to allocate 1.00 EiB ')
    assert (where, advised) == ('Out of memory in the start, before the first iteration.', '(advice)')


def test_host_memory_is_distinguished_from_gpu_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')  # for mmengine's logger
    refused = pytest.raises(RuntimeError, match="can't allocate memory")
    with refused as error, explaining_out_of_memory(Config(), 'a.py'):
        torch.empty(2**60, dtype=torch.uint8)
    assert str(error.value).splitlines()[-1] == (
        "The host's memory is exhausted, not the GPU's: reduce num_workers or prefetch_factor of the loaders."
    )


def needs(mebibytes):
    """Return the memory of a step with one operation that needs this much."""
    return StepMemory(np.array(['forward']), np.array([[0], [0], [0], [mebibytes * MIB], [0]]))


PEAKS = {
    (2, 'all', 'fp32'): 8000,
    (1, 'all', 'fp32'): 4500,
    (2, 'save_conv', 'fp32'): 4400,
    (1, 'full_checkpoint', 'fp32'): 2000,
    (2, 'all', 'bf16'): 4600,
    (1, 'all', 'bf16'): 2600,
    (2, 'save_conv', 'bf16'): 2500,
    (4, 'full_checkpoint', 'bf16'): 100,
}


def advised(monkeypatch, gibibytes):
    choices = {Choice(*choice): needs(peak) for choice, peak in PEAKS.items()}
    own = Choice(2, 'all', 'fp32')
    plan = RecipeMemory(own, choices[own], needs(1), needs(1), choices, {})
    monkeypatch.setattr(out_of_memory, 'plan_recipe', lambda cfg, **_: plan)
    cfg = Config(dict(train_dataloader=dict(batch_size=2)))
    return list(advice(cfg, 'a.py', 'training, backward pass', lambda: gibibytes and int(gibibytes * 1024) * MIB))


def test_what_fits_is_listed_by_speed(monkeypatch):
    assert advised(monkeypatch, 8) == [
        'Planned for this run: 7.8 GiB; available to this process: 8.0 GiB.',
        'These settings would fit, fastest first:',
        '  1. --amp bf16: 4.5 GiB',
        '  2. --amp bf16 --per-device 1: 2.5 GiB',
        '  3. --amp bf16 --cfg-options activation_memory=save_conv: 2.4 GiB',
        'List all settings: python tools/plan_memory.py a.py --device-memory 8192MB',
    ]


def test_what_does_not_fit_is_not_listed(monkeypatch):
    assert advised(monkeypatch, 3)[2:-1] == [
        '  1. --amp bf16 --cfg-options activation_memory=save_conv: 2.4 GiB',
        '  2. --per-device 1 --cfg-options activation_memory=full_checkpoint: 2.0 GiB',
    ]
    assert advised(monkeypatch, 1)[1:-1] == [
        'No precision, activation_memory or batch size would fit: train on smaller inputs.'
    ]
    assert advised(monkeypatch, None)[:3] == [
        'Planned for this run: 7.8 GiB.',
        'These settings need less, fastest first:',
        '  1. --amp bf16: 4.5 GiB',
    ]


def test_a_plan_that_fails_does_not_hide_the_error(monkeypatch):
    lines = list(advice(Config(dict(model=dict())), 'a.py', 'training, backward pass', lambda: 2**30))
    (line,) = lines
    assert line.startswith('Planning settings that would fit failed: ')


def test_an_evaluation_has_its_own_advice():
    loader = dict(batch_size=4)
    model = dict(data_preprocessor=dict(size=(512, 1024)))
    cfg = Config(dict(default_scope='mmseg', model=model, val_dataloader=loader, train_cfg=dict(max_iters=80000)))
    assert list(advice(cfg, 'a.py', 'validation, forward pass of decode_head', lambda: 1)) == [
        'To reduce the memory of an evaluation, try in this order:',
        '  1. --cfg-options val_dataloader.batch_size=1: one sample at a time',
        '  2. --cfg-options model.test_cfg.mode=slide model.test_cfg.crop_size=(512,1024) '
        'model.test_cfg.stride=(341,682): sliding windows; the results differ',
        '  3. --cfg-options train_cfg.val_interval=80000: only at the end; python tools/test.py a.py CHECKPOINT '
        'evaluates without an optimizer in memory',
    ]
    clips = Config(dict(default_scope='mmengine', model=dict(max_test_views=None), test_dataloader=loader))
    assert list(advice(clips, 'a.py', 'the test, forward pass of head', lambda: 1))[2] == (
        '  2. --cfg-options model.max_test_views=1: one view at a time'
    )
    clips.model.max_test_views = 1
    clips.test_dataloader.batch_size = 1
    (line,) = advice(clips, 'a.py', 'the test, forward pass of head', lambda: 1)
    assert line == 'The evaluation already runs one sample at a time: use smaller inputs.'
    augmented = dict(
        default_scope='mmseg',
        model=dict(test_cfg=dict(mode='slide')),
        custom_hooks=[dict(type='PrepareTTAHook')],
    )
    assert list(advice(Config(augmented), 'a.py', 'the test, forward pass of decode_head', lambda: 1))[1:] == [
        '  1. --tta with smaller scales: the largest one determines the memory'
    ]
