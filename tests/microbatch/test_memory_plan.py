"""The memory of a step, against bytes counted by hand and against torch's own allocator."""

import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.microbatch.activation_memory import MODES, set_activation_memory
from wsbcn_mm.microbatch.memory_plan import KINDS, Choice, Moment, fake_tensors, fastest, step_memory


def allocator_peak(step):
    """Most bytes in use at once in torch's CPU allocator during a step, including memory inside operations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert len(sizes) > 10
    return int(np.cumsum(sizes).max())


def there_before(model, optimizer):
    state = [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    return sum(t.untyped_storage().nbytes() for t in [*model.parameters(), *model.buffers(), *state])


def block(width=32):
    layers = []
    for _ in range(2):
        layers += [WSConv2d(width, width, 3, padding=1), BatchChannelNorm(width, 8), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def make_step(mode='all', samples=1):
    """A model, its optimizer and a step, after a first step that created the optimizer's state."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), block(), block(), nn.Conv2d(32, 4, 1))
    set_activation_memory(model, mode)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

    def step():
        x = torch.zeros(samples, 3, 40, 40) + 0.5
        nn.functional.cross_entropy(model(x), torch.zeros(samples, 40, 40, dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return model, optimizer, step


@pytest.mark.parametrize('mode', MODES)
def test_the_plan_is_what_the_allocator_hands_out(mode):
    with fake_tensors():
        model, optimizer, step = make_step(mode)
        planned = step_memory(step, model, optimizer).peak().total
    model, optimizer, step = make_step(mode)
    gc.collect()
    measured = there_before(model, optimizer) + allocator_peak(step)
    assert planned == pytest.approx(measured, rel=0.1)
    assert step_memory(step, model, optimizer).peak().total == pytest.approx(measured, rel=0.1)


def test_less_is_kept_from_mode_to_mode_and_two_samples_take_twice_the_activations():
    def activations(mode, samples):
        with fake_tensors():
            model, optimizer, step = make_step(mode, samples)
            return step_memory(step, model, optimizer).peak('forward').activations

    everything, convs, least = (activations(mode, 1) for mode in MODES)
    assert least < convs < everything
    filters = 4 * 32 * 32 * 9 * 4
    assert activations('all', 2) - filters == pytest.approx(2 * (everything - filters), rel=0.05)


def linear_step(accumulation=1):
    """A layer of 100 x 100 on 10 rows, SGD with momentum."""
    layer = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, foreach=False)

    def step():
        for _ in range(accumulation):
            layer(torch.zeros(10, 100)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return layer, optimizer, step


@pytest.mark.parametrize('context', [fake_tensors, torch.enable_grad])
def test_every_kind_by_hand(context):
    with context():
        layer, optimizer, step = linear_step()
        first = step_memory(step, layer, optimizer)
        later = step_memory(step, layer, optimizer)
    weight, row = 40_000, 4_000
    # Input, output, its square and the sum.
    assert first.peak('forward') == Moment(weight, 0, 0, 3 * row + 4, 0)
    assert later.peak('forward') == Moment(weight, weight, 0, 3 * row + 4, 0)
    assert first.peak('optimizer')[:3] == later.peak('optimizer')[:3] == (weight, weight, weight)
    assert later.peak('backward').gradients == weight
    assert later.peak() == later.peak('backward')
    assert list(dict.fromkeys(later.stages)) == ['forward', 'backward', 'optimizer']
    assert later.bytes.shape == (len(KINDS), len(later.stages))
    assert later.bytes[1:3, -1].tolist() == [weight, weight]  # gradients are freed after the last operation


def test_gradients_stay_while_they_accumulate():
    layer, optimizer, step = linear_step(accumulation=2)
    memory = step_memory(step, layer, optimizer)
    assert memory.peak('forward').gradients == 40_000
    assert memory.peak('backward').workspace >= 40_000  # the second gradient, until it is added


def test_evaluation_and_what_is_present():
    layer, optimizer, _ = linear_step()
    with torch.no_grad():
        memory = step_memory(
            lambda: layer(torch.zeros(10, 100)), layer, optimizer, stage='test', present=[torch.zeros(250)]
        )
    assert memory.peak('test') == memory.peak() == Moment(40_000, 0, 0, 1_000 + 2 * 4_000, 0)
    with pytest.raises(ValueError, match=r"^stage='forward': one of the stages of the step is expected: test$"):
        memory.peak('forward')


def test_where_shapes_depend_on_values_the_largest_is_planned():
    with fake_tensors():
        x = torch.zeros(3, 4, 5)
        assert x[x > 0].shape == (60,)
        assert x[:, torch.ones(4, 5, dtype=torch.bool)].shape == (3, 20)
        assert x[torch.tensor([0, 1])].shape == (2, 4, 5)
        assert [x.sum().item(), (x > 0).any().item(), x.long().sum().item()] == [1.0, True, 1]


def test_the_fastest_that_fits():
    plain, keeps_less = Choice(1, 'all', 'fp32'), Choice(2, 'save_conv', 'fp32')
    assert fastest([keeps_less, plain]) == plain
    assert fastest([plain, Choice(2, 'all', 'fp32')]).samples == 2
    assert fastest([plain, Choice(1, 'full_checkpoint', 'bf16')]).precision == 'bf16'
    assert fastest([]) is None
