"""From BN to WS and BCN: what is exact is exact, what is lost is known, what is new starts near the identity."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from tests.surgery.trained_bn import CONVS, Branches, one_layer, trained_branches
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.ops import weight_standardize
from wsbcn_mm.surgery.convert import convert
from wsbcn_mm.surgery.kinds import count_convs, count_norms
from wsbcn_mm.surgery.start_from_bn import adopt_bn_weights, near_identity, start_from_bn


@pytest.mark.parametrize('variant', ['jhu', 'timm'])
@pytest.mark.parametrize('kind', CONVS)
def test_scales_are_absorbed_exactly_also_where_eps_rules(kind, variant):
    """With filters of mean zero nothing is lost, up to the rounding of float64."""
    net, x = one_layer(kind, centred=True)
    expected = net(x)
    assert (net[1].running_var < 0.1 * net[1].eps).any(), 'no channel is weak enough to tell'
    start = start_from_bn(net, 'bn-ws', example=x, variant=variant)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(start.lost_means['0'], torch.zeros(8).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize('kind', CONVS)
def test_lost_means_are_all_that_is_lost(kind):
    """W = s (W_hat + k): a plain convolution with W_hat + k in place of the standardised filter gives BN's outputs."""
    net, x = one_layer(kind)
    expected, plain = net(x), copy.deepcopy(net[0])
    start = start_from_bn(net, 'bn-ws', example=x)
    assert (net(x) - expected).abs().max() > 0.01
    k = start.lost_means['0']
    standardized = weight_standardize(plain.weight, groups=plain.groups, transposed=plain.transposed)
    with torch.no_grad():
        if plain.transposed:
            mean = k.view(plain.groups, 1, -1, *(1,) * len(plain.kernel_size))
            plain.weight.copy_((standardized.unflatten(0, (plain.groups, -1)) + mean).flatten(0, 1))
        else:
            plain.weight.copy_(standardized + k.view(-1, *(1,) * (plain.weight.ndim - 1)))
        torch.testing.assert_close(net[1](plain(x)), expected, rtol=1e-9, atol=1e-9)


def test_statistics_are_divided_by_the_divisor_of_the_variant():
    net, x = one_layer('2d', centred=True)
    mean, var, weight = net[1].running_mean.clone(), net[1].running_var.clone(), net[0].weight.detach().clone()
    affine = net[1].weight.detach().clone()
    start_from_bn(net, 'bn-ws', example=x)
    divisor = weight.flatten(1).std(1) + 1e-5
    torch.testing.assert_close(net[1].running_mean, mean / divisor)
    torch.testing.assert_close(net[1].running_var, var / divisor**2)
    factor = net[1].weight / affine
    assert factor[0] < 0.5, 'eps damped the weak channel'
    torch.testing.assert_close(factor[1:], torch.ones(7).double(), rtol=2e-3, atol=0)


@pytest.mark.parametrize('affine', ['group', 'channel'])
def test_channel_half_is_the_identity_on_samples_with_the_statistics_of_all(affine):
    torch.manual_seed(0)
    norm = BatchChannelNorm(8, 2, affine=affine).double().eval()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 8, 7, 5).double()
    over = (2, 3)
    x = (x - x.mean(over, keepdim=True)) / x.std(over, correction=0, keepdim=True)
    batch_half = x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    assert (norm(x) - batch_half).abs().max() > 0.1
    near_identity(norm)
    torch.testing.assert_close(norm(x), batch_half, rtol=1e-4, atol=1e-4)


def test_start_is_nearer_than_a_plain_conversion():
    """The channel half's affine, on data that no sample has the statistics of."""
    net, x = trained_branches()
    expected, neutral = net.features(x), copy.deepcopy(net)
    start = start_from_bn(net, 'bcn', example=x, num_groups=2)
    assert start.lost_means == {}
    convert(neutral, 'bcn', example=x, num_groups=2)
    distance = [(model.features(x) - expected).norm() for model in (net, neutral)]
    assert distance[0] < 0.5 * distance[1]


def test_new_layers_start_as_they_are_converted():
    net, x = trained_branches(new_head=True)
    start = start_from_bn(net, example=x, num_groups=2)
    assert set(start.lost_means) == {'conv1', 'conv2', 'short'}
    assert start.norms == ('bn1', 'bn2', 'bn3')
    assert (net.bn4.group_weight == 1).all()
    assert (net.bn4.running_var == 1).all()
    assert start.conversion.policy == 'bcn-ws'
    assert 'filter means lost' in str(start.conversion)


def test_a_norm_of_several_convolutions_starts_anew():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.norm, self.own = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.own(self.c(self.norm(self.a(x)) + self.norm(self.b(x))))

    torch.manual_seed(0)
    net, x = Shared(), torch.rand(4, 3, 9, 9)
    net(x)
    start = start_from_bn(net, example=x, num_groups=2)
    assert list(start.lost_means) == ['c']
    assert start.norms == ('own',)
    assert not net.norm.running_mean.any()


@pytest.mark.parametrize('given', ['traced', 'by the order of modules'])
def test_a_built_model_adopts_the_weights_as_the_conversion_does(given):
    net, x = trained_branches(new_head=True)
    built = Branches(WSConv2d, partial(BatchChannelNorm, num_groups=2))
    built.load_state_dict(net.state_dict(), strict=False)
    example = x if given == 'traced' else None
    adopted = adopt_bn_weights(built, example=example)
    started = start_from_bn(net, example=example, num_groups=2)
    assert adopted.norms == started.norms
    assert adopted.conversion is None
    assert adopted.lost_means.keys() == started.lost_means.keys()
    for name, mean in adopted.lost_means.items():
        assert torch.equal(mean, started.lost_means[name])
    for name, value in net.state_dict().items():
        assert torch.equal(built.state_dict()[name], value), name


def test_a_real_model():
    torch.manual_seed(0)
    net, x = torchvision.models.resnet18(), torch.rand(2, 3, 64, 64)
    net(x)
    start = start_from_bn(net, 'bcn-ws', example=x)
    assert count_convs(net) == {'WS': 20}
    assert count_norms(net) == {'BCN': 20}
    assert len(start.lost_means) == len(start.norms) == 20
    assert torch.isfinite(net(x)).all()


def test_what_cannot_start_is_refused():
    net, x = trained_branches()
    with pytest.raises(ValueError, match=r"policy='gn-ws' has no running statistics .*: choose bn, syncbn, bn-ws"):
        start_from_bn(net, 'gn-ws', example=x)
    with pytest.raises(ValueError, match='the model has no BatchNorm with trained statistics: load its weights first'):
        start_from_bn(Branches(), example=x)
    with pytest.raises(ValueError, match='the model has no norm with trained statistics: load the weights of its BN'):
        adopt_bn_weights(Branches(WSConv2d, partial(BatchChannelNorm, num_groups=2)), example=x)
