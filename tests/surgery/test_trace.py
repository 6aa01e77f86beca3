"""Which norm follows which convolution, in forwards written in all common ways."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.surgery.trace import Trace, Tracer, trace, trace_next_forward

X = torch.randn(2, 4, 6, 6)


class Net(nn.Module):
    """Two convolutions, two norms, and a forward given by the test."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.spare = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


def see(forward) -> Trace:
    return trace(Net(forward), X)


@pytest.mark.parametrize(
    'forward',
    [
        lambda m, x: m.norm(m.conv(x)),
        lambda m, x: m.norm(input=m.conv(x)),
        lambda m, x: m.norm(nn.Identity()(m.conv(x))),
        lambda m, x: m.norm(F.dropout(m.conv(x), training=m.training)),
        lambda m, x: m.norm(m.conv(x).contiguous()),
        lambda m, x: F.relu(m.norm(m.conv(x)), inplace=True) + x,
        lambda m, x: checkpoint(lambda t: m.norm(m.conv(t)), x, use_reentrant=False),
    ],
    ids=[
        'plain',
        'keyword',
        'identity',
        'dropout in evaluation',
        'contiguous',
        'residual after the norm',
        'checkpointed',
    ],
)
def test_a_norm_that_receives_the_convolutions_own_tensor_follows_it(forward):
    seen = see(forward)
    assert seen.pairs == {'conv': 'norm'}
    assert seen.norms_after == {'conv': ('norm',)}
    assert seen.input_shapes == {'conv': ((2, 4, 6, 6),), 'norm': ((2, 4, 6, 6),)}


@pytest.mark.parametrize(
    ('forward', 'receivers'),
    [
        (lambda m, x: m.norm(m.conv(x) + x), 'add()'),
        (lambda m, x: m.norm(x + m.conv(x)), 'add()'),
        (lambda m, x: m.norm(m.conv(x) * 1.0), 'mul()'),
        (lambda m, x: m.norm(F.relu(m.conv(x))), 'relu()'),
        (lambda m, x: m.norm(F.max_pool2d(m.conv(x), 2)), 'max_pool2d()'),
        (lambda m, x: m.norm(m.conv(x).flatten(2).unflatten(2, (6, 6))), 'flatten()'),
        (lambda m, x: m.norm(torch.cat([m.conv(x), x])), 'cat()'),
        (lambda m, x: m.norm(m.conv(x)[:, :, 1:]), 'getitem()'),
        (lambda m, x: m.norm(m.conv(x).detach()), 'detach()'),
        (lambda m, x: m.norm(m.other(m.conv(x))), 'conv2d()'),
        (lambda m, x: F.interpolate(m.conv(x), size=m.norm(x).shape[2:]), 'interpolate()'),
        (lambda m, x: F.batch_norm(m.conv(x), None, None, training=True), 'batch_norm()'),
    ],
)
def test_a_function_in_between_is_named_and_breaks_the_pair(forward, receivers):
    seen = see(forward)
    assert seen.receivers['conv'] == ((receivers,),)
    assert 'conv' not in seen.norms_after
    assert 'conv' not in seen.pairs


def test_an_in_place_activation_returns_the_same_tensor_and_still_breaks_the_pair():
    seen = see(lambda m, x: m.norm(F.relu(m.conv(x), inplace=True)))
    assert seen.receivers == {'conv': (('relu()', 'norm'),)}
    assert seen.sources == {'norm': (None,)}
    assert seen.pairs == seen.norms_after == {}


def test_an_output_that_is_used_twice_makes_no_pair():
    def forward(m, x):
        out = m.conv(x)
        return m.norm(out) + out

    seen = see(forward)
    assert seen.receivers == {'conv': (('norm', 'add()'),)}
    assert seen.sources == {'norm': ('conv',)}
    assert seen.pairs == seen.norms_after == {}


def test_an_output_that_leaves_the_model_has_no_receiver():
    seen = see(lambda m, x: m.conv(m.norm(x)))
    assert seen.receivers == {'conv': ((),)}
    assert seen.norms_after == {}


def test_reading_a_property_of_a_tensor_is_not_a_use():
    def forward(m, x):
        out = m.conv(x)
        assert out.shape == x.shape
        assert out.dtype == torch.float32
        assert out.size(1) == 4
        return m.norm(out)

    assert see(forward).pairs == {'conv': 'norm'}


def test_a_function_called_like_a_norm_is_not_taken_for_it():
    seen = see(lambda m, x: torch.norm(m.conv(m.norm(x))))
    assert seen.receivers == {'conv': (('norm()',),)}
    assert seen.norms_after == {}


def test_one_convolution_with_a_norm_per_call_is_normalised_but_makes_no_pair():
    """The shared heads of detectors: one convolution for all levels, a norm for each."""
    seen = see(lambda m, x: m.norm(m.conv(x)) + m.spare(m.conv(2 * x)))
    assert seen.norms_after == {'conv': ('norm', 'spare')}
    assert seen.pairs == {}


def test_one_call_without_a_norm_is_enough_to_break_the_pair():
    seen = see(lambda m, x: m.norm(m.conv(x)) + m.conv(2 * x))
    assert seen.receivers == {'conv': (('norm',), ('add()',))}
    assert seen.norms_after == {}


def test_one_norm_after_two_convolutions_makes_no_pair():
    seen = see(lambda m, x: m.norm(m.conv(x)) + m.norm(m.other(x)))
    assert seen.norms_after == {'conv': ('norm',), 'other': ('norm',)}
    assert seen.sources == {'norm': ('conv', 'other')}
    assert seen.pairs == {}


def test_a_pair_that_runs_twice_is_one_pair():
    seen = see(lambda m, x: m.norm(m.conv(m.norm(m.conv(x)))))
    assert seen.pairs == {'conv': 'norm'}
    assert seen.input_shapes['conv'] == ((2, 4, 6, 6),) * 2


def test_our_layers_are_seen_as_torchs():
    model = nn.Sequential(WSConv2d(4, 8, 3), BatchChannelNorm(8, 4), nn.ConvTranspose2d(8, 4, 2), nn.GroupNorm(2, 4))
    assert trace(model, X).pairs == {'0': '1', '2': '3'}
    assert trace(model.to('meta'), X.to('meta')).pairs == {'0': '1', '2': '3'}


def test_a_model_does_not_change():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    model.train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, X)
    assert [m.training for m in model.modules()] == [True, True, True, False, False, False]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_a_forward_that_fails_leaves_no_hook_and_no_mode_behind():
    def fail(m, x):
        m.norm(m.conv(x))
        m.norm(x[:, :2])

    model = Net(fail).train()
    with pytest.raises(RuntimeError):
        trace(model, X)
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.overrides._get_current_function_mode() is None


def test_a_function_may_run_the_parts_of_a_model():
    model = Net(lambda m, x: m.conv(x))
    assert trace(model, lambda: model.spare(model.other(model(X)))).pairs == {'other': 'spare'}
    with pytest.raises(ValueError, match=r'^none of the 4 convolutions and norms ran in the example forward$'):
        trace(model, lambda: X + 1)


def test_the_next_training_forward_is_traced_once_and_still_learns():
    model, seen = Net(lambda m, x: m.norm(m.conv(x))), []
    trace_next_forward(model, seen.append)
    model(X).sum().backward()
    model(X)
    assert [t.pairs for t in seen] == [{'conv': 'norm'}]
    assert model.norm.num_batches_tracked == 2
    assert model.conv.weight.grad is not None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_next_forward_that_fails_calls_nothing():
    def run(m, x):
        if m.fails:
            raise RuntimeError('out of memory')
        return m.norm(m.conv(x))

    model, seen = Net(run), []
    model.fails = True
    trace_next_forward(model, seen.append)
    other = model.register_forward_hook(lambda *_: None)  # runs after the tracer's hook
    with pytest.raises(RuntimeError, match=r'^out of memory$'):
        model(X)
    assert torch.overrides._get_current_function_mode() is None
    other.remove()
    model.fails = False
    model(X)
    assert seen == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_outputs_of_convolutions_are_not_kept_alive():
    model = Net(lambda m, x: m.norm(m.conv(x)))
    with torch.no_grad(), Tracer(model) as tracer:
        model(X)
        assert len(tracer._outputs) == 0
