"""Find the module that infinities and nan come from, and leave the model unchanged."""

import pytest
import torch
from torch import nn

from wsbcn_mm.diagnostics.non_finite import (
    NormState,
    all_finite,
    describe_norms,
    first_non_finite,
    measure,
    state_that_is_not_finite,
)
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.microbatch import StepStatistics


class Square(nn.Module):
    def forward(self, x):
        return x * x


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        WSConv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), Square(), BatchChannelNorm(4, 2)
    )


@pytest.mark.parametrize('stepwise', [False, True])
def test_the_first_module_is_named_with_its_inputs_and_the_model_is_unchanged(stepwise):
    model = network()
    statistics = StepStatistics(model) if stepwise else None
    x = torch.randn(2, 3, 8, 8)
    model(x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pending = model[4].pending_totals.clone() if stepwise else None
    with torch.no_grad():
        model[2].weight.mul_(1e25)
    bad = first_non_finite(model, lambda: model(x))
    assert (bad.name, bad.module, bad.state) == ('3', 'Square()', {})
    assert bad.inputs.bad == 0
    assert bad.outputs.bad > 0
    text = str(bad).splitlines()
    assert text[0] == 'the first module with a non-finite output: 3, Square()'
    assert text[1].startswith('  input        float32, -')
    assert f', {bad.outputs.bad} of 288 not finite' in text[2] or text[2].endswith(', none of 288 finite')
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != '2.weight')
    assert not any(module._forward_hooks for module in model.modules())
    if statistics:
        assert torch.equal(model[4].pending_totals, pending)


def test_weights_that_are_not_numbers_are_shown():
    model = network()
    with torch.no_grad():
        model[2].bias[1] = float('nan')
    bad = first_non_finite(model, lambda: model(torch.randn(1, 3, 8, 8)))
    assert bad.name == '2'
    assert '  bias         float32, 1 of 4 not finite, the others ' in str(bad)
    assert state_that_is_not_finite(model) == ['2.bias']


def test_an_operation_between_modules_is_pointed_out():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(x / 0)

    text = str(first_non_finite(model := Halves(), lambda: model(torch.ones(2))))
    assert text.splitlines()[1] == (
        '  input        float32, none of 2 finite: from an operation before it, outside any module'
    )


def test_finite_models_have_none():
    model = network()
    assert first_non_finite(model, lambda: model(torch.randn(1, 3, 8, 8))) is None
    assert state_that_is_not_finite(model) == []


def test_values():
    assert str(measure([torch.tensor([1.0, -2.5])])) == 'float32, -2.5 to 1'
    assert str(measure([torch.tensor([1.0, float('inf')]).half()])) == 'float16, 1 of 2 not finite, the others 1 to 1'
    assert measure([torch.tensor([1])]) is None
    assert all_finite([torch.tensor([1]), torch.zeros(0), torch.ones(2)])
    assert not all_finite([torch.ones(2), torch.tensor(float('-inf'))])


def test_norms_in_a_line():
    model = network()
    assert describe_norms(model) == (
        'running statistics of 2 norms: running_mean float32, 0 to 0; running_var float32, 1 to 1'
    )
    model[1].running_var[3] = float('nan')
    assert describe_norms(model).endswith('1 of 12 not finite, the others 1 to 1; first not finite: 1')
    assert describe_norms(nn.ReLU()) == 'norms with running statistics: none'


def test_state_of_norms_comes_back():
    model = network()
    state = NormState(model)
    model(torch.randn(2, 3, 8, 8))
    assert model[1].num_batches_tracked == 1
    state.put_back()
    assert model[1].num_batches_tracked == 0
    assert not model[4].running_mean.any()
