"""Moving averages: the statistics go with the weights, counters are exact, and accumulation does not matter."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.engine.toy_runs import Toy, assert_equal, load, runner_of, state_of
from wsbcn_mm.diagnostics.statistics_gap import statistics_gaps
from wsbcn_mm.engine.statistics.averaging import EMAWithStatistics
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d

EMA = dict(type='EMAPerStepHook', momentum=0.25)


def lerp(state, newer):
    return {name: state[name].lerp(v, 0.25) if v.dtype.is_floating_point else v for name, v in newer.items()}


class Flagged(nn.Sequential):
    """With buffers that are no statistics."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer('flag', torch.tensor(False))
        self.register_buffer('scale', torch.ones(2))
        self.register_buffer('unsaved', torch.zeros(2), persistent=False)


@pytest.mark.parametrize('norm', [lambda: BatchChannelNorm(8, 4, rate=0.5), lambda: nn.BatchNorm2d(8), nn.Identity])
def test_statistics_are_averaged_and_other_buffers_copied(norm):
    torch.manual_seed(0)
    model = Flagged(WSConv2d(3, 8, 3), norm())
    average = EMAWithStatistics(model, momentum=0.25)
    expected = None
    for step in range(3):
        model(torch.randn(2, 3, 9, 9) * 2 + 1)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        model.flag.fill_(step == 2)
        model.scale.add_(1)
        model.unsaved.add_(1)
        average.update_parameters(model)
        state = state_of(model)
        expected = state if step == 0 else lerp(expected, state)
    expected['scale'] = model.scale
    assert average.module.state_dict().keys() == expected.keys()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert torch.equal(average.module.unsaved, model.unsaved)


@pytest.fixture(scope='module')
def trained():
    """A small BCN network that has learned, and averages of it with statistics of its own and with the last ones."""
    torch.manual_seed(0)
    patterns = torch.randn(4, 3, 6, 6)
    model = nn.Sequential(
        WSConv2d(3, 16, 3), BatchChannelNorm(16, 4, warmup=True), nn.ReLU(),
        WSConv2d(16, 16, 3), BatchChannelNorm(16, 4, warmup=True), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    average = EMAWithStatistics(model, momentum=0.02)
    last = copy.deepcopy(average)
    last.update_buffers, last.avg_parameters = False, dict(last.module.named_parameters())

    def batch(size):
        labels = torch.randint(0, 4, (size,))
        shifts = torch.randn(size, 3, 1, 1)
        return patterns[labels] + torch.randn(size, 3, 6, 6) + shifts, labels

    for _ in range(400):
        images, labels = batch(4)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        average.update_parameters(model)
        super(EMAWithStatistics, last).update_parameters(model)
    return model.eval(), average.module.eval(), last.module.eval(), batch(800)


def accuracy(model, data):
    with torch.no_grad():
        return 100 * float((model(data[0]).argmax(1) == data[1]).float().mean())


def test_the_average_of_a_bcn_model_is_as_good_as_the_model(trained):
    model, average, _, data = trained
    assert accuracy(model, data) > 90
    assert accuracy(average, data) >= accuracy(model, data) - 1
    assert int(average[1].num_batches_tracked) == int(model[1].num_batches_tracked) == 400


def test_its_statistics_are_those_of_its_weights_more_than_the_last_ones_are(trained):
    _, average, last, data = trained
    averaged, latest = (statistics_gaps(net, data[0].split(100))[0] for net in (average, last))
    assert averaged.size < latest.size / 2
    assert averaged.factor < 1.25
    assert averaged.mean_shift < 0.1


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A run without and one with the average, of 3 steps of 2 micro-batches each; validation is within the second."""
    found = []
    for hooks in ([], [EMA]):
        folder = tmp_path_factory.mktemp(f'{len(hooks)}')
        own = dict(type='StandardizedWeightHook')
        found.append(runner_of(folder, Toy(), own, *hooks, iters=6, accumulation=2, interval=2, val_interval=3))
        found[-1].train()
    return found


def averages(folder):
    """Averages after each step, from the raw weights that checkpoints have."""
    state = None
    for step in (1, 2, 3):
        raw = load(f'{folder}/iter_{2 * step}.pth')['state_dict']
        state = raw if state is None else lerp(state, raw)
        yield step, raw, state


def test_it_moves_once_per_optimizer_step_and_is_what_is_saved_and_validated(runs):
    plain, averaged = runs
    assert_equal(state_of(plain.model), state_of(averaged.model))
    for step, raw, expected in averages(plain.work_dir):
        saved = load(f'{averaged.work_dir}/iter_{2 * step}.pth')
        for name, value in expected.items():
            torch.testing.assert_close(saved['state_dict'][name], value, msg=name)
        assert_equal({name: saved['ema_state_dict'][f'module.{name}'] for name in raw}, raw)
        assert int(saved['ema_state_dict']['steps']) == step
    first, last = averaged.outputs.states
    assert_equal(first, load(f'{averaged.work_dir}/iter_2.pth')['state_dict'])
    assert_equal(last, load(f'{averaged.work_dir}/iter_6.pth')['state_dict'])


def test_a_resumed_run_has_the_average(runs, tmp_path):
    straight = runs[1]
    settings = dict(iters=6, accumulation=2, interval=6, val_interval=3)
    file = f'{straight.work_dir}/iter_4.pth'
    runner_of(tmp_path, Toy(), EMA, **settings, load_from=file, resume=True).train()
    first, second = (load(f'{folder}/iter_6.pth') for folder in (straight.work_dir, tmp_path))
    for entry in ('state_dict', 'ema_state_dict'):
        assert_equal(first[entry], second[entry])


def test_tools_load_its_checkpoints_into_a_runner_that_does_not_run(runs, tmp_path):
    file = f'{runs[1].work_dir}/iter_6.pth'
    runner = runner_of(tmp_path, Toy(), EMA, dict(type='PreciseStatisticsHook'), iters=6)
    runner.load_checkpoint(file, strict=True)
    assert_equal(state_of(runner.model), load(file)['state_dict'])
