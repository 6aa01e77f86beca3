"""The way from BN to WS and BCN: BN at its start, plain layers at its end, the formula in between."""

import copy
import re
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint
from trained_bn import CONVS, Branches, one_layer, train_statistics, trained_branches

from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.microbatch import StepStatistics
from wsbcn_mm.ops.bcn.reference import batch_half, channel_half
from wsbcn_mm.surgery.gradual import Gradual
from wsbcn_mm.surgery.start_from_bn import start_from_bn


def gradual_branches(**options):
    net, x = trained_branches()
    expected = net(x)
    start = start_from_bn(net, example=x, num_groups=2)
    return net, x, expected, Gradual(net, start.lost_means, start.norms, **options)


@pytest.mark.parametrize('kind', CONVS)
def test_it_begins_as_the_bn_network(kind):
    net, x = one_layer(kind)
    expected = net(x)
    start = start_from_bn(net, example=x, num_groups=4)
    Gradual(net, start.lost_means, start.norms)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)


def test_it_begins_as_a_real_bn_network_in_float32():
    torch.manual_seed(0)
    net, x = torchvision.models.resnet18(num_classes=10), torch.rand(2, 3, 64, 64)
    train_statistics(net, x)
    expected = net(x)
    start = start_from_bn(net, example=x)
    ends = net(x)
    gradual = Gradual(net, start.lost_means, start.norms)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    gradual.alpha = 0.999
    torch.testing.assert_close(net(x), ends, rtol=0.05, atol=0.05 * ends.abs().max().item())


@pytest.mark.parametrize('end', ['alpha 1', 'finish'])
def test_it_ends_as_plain_layers(end):
    net, x, _, gradual = gradual_branches(alpha=0.3)
    plain = Branches(WSConv2d, partial(BatchChannelNorm, num_groups=2)).eval()
    assert net.state_dict().keys() == plain.state_dict().keys(), 'its state is that of plain layers at any time'
    plain.load_state_dict(net.state_dict())
    assert not torch.equal(net(x), plain(x))
    if end == 'finish':
        gradual.finish()
        assert not any(module._forward_hooks for module in net.modules())
    gradual.alpha = 1
    assert torch.equal(net(x), plain(x))


@pytest.mark.parametrize('training', [False, True])
def test_values_and_gradients_are_those_of_the_formula(training):
    net, x = one_layer('2d')
    start = start_from_bn(net, example=x, num_groups=4)
    Gradual(net, start.lost_means, start.norms, alpha=0.3)
    net.train(training)
    conv, norm = net
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    x.requires_grad_()
    out = net(x)
    parameters = [x, *net.parameters()]
    found = torch.autograd.grad(out.square().mean(), parameters)

    weight = conv.standardized_weight() + 0.7 * start.lost_means['0'].view(-1, 1, 1, 1)
    z = nn.functional.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)
    if training:
        with torch.no_grad():
            own = z.mean((0, 2, 3)), (z - mean.view(-1, 1, 1)).square().mean((0, 2, 3))
            mean, var = mean.lerp(own[0], norm.rate), var.lerp(own[1], norm.rate)
        torch.testing.assert_close(norm.running_mean, mean)
    y = batch_half(z, mean, var, norm.weight, norm.bias, norm.eps)
    expected = 0.7 * y + 0.3 * channel_half(y, 4, norm.group_weight, norm.group_bias, norm.eps)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    for a, b in zip(found, torch.autograd.grad(expected.square().mean(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_bn_with_ws_alone():
    net, x = trained_branches()
    expected = net(x)
    start = start_from_bn(net, 'bn-ws', example=x)
    assert start.norms == ()
    Gradual(net, start.lost_means, start.norms)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


def test_it_goes_on_from_its_state():
    net, x, _, gradual = gradual_branches(alpha=0.4)
    again = Branches(WSConv2d, partial(BatchChannelNorm, num_groups=2)).eval()
    again.load_state_dict(net.state_dict())
    Gradual(again, **copy.deepcopy(gradual.state_dict()))
    assert torch.equal(again(x), net(x))


def test_training_with_estimates_that_move_once_per_step():
    """Two micro-batches, then a commit; and recomputation in the backward pass changes nothing."""
    net, x, _, _ = gradual_branches(alpha=0.5)
    other = copy.deepcopy(net)
    losses = []
    for model, checkpointed in ((net, False), (other, True)):
        statistics = StepStatistics(model.train())
        for half in x.split(2):
            out = checkpoint(model, half, use_reentrant=False) if checkpointed else model(half)
            losses.append(out.square().mean())
            losses[-1].backward()
        statistics.commit()
    assert losses[:2] == losses[2:]
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    assert int(net.bn1.num_batches_tracked) == int(other.bn1.num_batches_tracked) == 7


def test_half_precision_under_autocast():
    net, x, expected, _ = gradual_branches()
    with torch.autocast('cpu', torch.bfloat16):
        out = net(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())


def test_what_does_not_fit_is_refused():
    net, _, _, gradual = gradual_branches()
    with pytest.raises(ValueError, match=re.escape('alpha=1.5 is no share: a number from 0 (BN) to 1')):
        gradual.alpha = 1.5
    with pytest.raises(ValueError, match=r'no WS convolution `out` with 2 filters: their means are of another one'):
        Gradual(net, {'out': torch.zeros(2)}, ())
    with pytest.raises(ValueError, match=r'no WS convolution `conv1` with 3 filters'):
        Gradual(net, {'conv1': torch.zeros(3)}, ())
    with pytest.raises(ValueError, match='the model has no BatchChannelNorm `bn9` to blend in'):
        Gradual(net, {}, ['bn9'])
