"""Conversion: which layers are replaced, what is carried over, what is left out, and what is rejected."""

import re
from collections import Counter

import pytest
import timm
import torch
import torchvision
from mmcv.cnn import ConvWS2d
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torchvision.ops import FrozenBatchNorm2d

import wsbcn_mm.segmentation  # noqa: F401  registers the heads
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d, WSConvTranspose2d
from wsbcn_mm.ops import weight_standardize
from wsbcn_mm.surgery.convert import Change, convert
from wsbcn_mm.surgery.kinds import conv_kind, count_convs, count_norms, norm_kind
from wsbcn_mm.surgery.policies import POLICIES, get_policy
from wsbcn_mm.surgery.trace import trace

KIND = {name: policy.norm for name, policy in POLICIES.items()}


def mmseg_model():
    init_default_scope('mmseg')
    norm = dict(type='BN')
    head = dict(channels=32, num_classes=5, align_corners=False, norm_cfg=norm)
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor'),
            backbone=dict(type='ResNetV1c', depth=18, base_channels=32, stem_channels=64, norm_cfg=norm),
            decode_head=dict(
                type='DeepLabV3PlusHead', in_channels=256, in_index=3, c1_in_channels=32, c1_channels=32,
                dilations=(1, 2), **head,
            ),
            auxiliary_head=dict(type='FCNHead', in_channels=128, in_index=2, num_convs=1, concat_input=False, **head),
            test_cfg=dict(mode='whole'),
        )
    )  # fmt: skip


MODELS_BY_NAME = {
    'deeplabv3_resnet50': (
        lambda: torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None),
        (2, 3, 64, 64),
        ['classifier.4'],
        60,
    ),
    'r3d_18': (lambda: torchvision.models.video.r3d_18(), (1, 3, 4, 32, 32), [], 20),
    'timm_resnet50': (lambda: timm.create_model('resnet50'), (1, 3, 64, 64), [], 53),
    'mmseg': (mmseg_model, (2, 3, 64, 64), ['decode_head.conv_seg', 'auxiliary_head.conv_seg'], 34),
}


def run(model, x):
    """A function that runs the whole model, including the auxiliary head that only mmseg's loss uses."""

    def forward():
        out = model(x)
        if hasattr(model, 'auxiliary_head'):
            model.auxiliary_head(model.extract_feat(x))
        return out

    return forward


@pytest.mark.parametrize(
    ('name', 'policy'),
    [('r3d_18', policy) for policy in POLICIES]
    + [(name, policy) for name in MODELS_BY_NAME if name != 'r3d_18' for policy in ('syncbn', 'gn', 'bcn-ws')],
)
def test_every_norm_and_every_normalised_convolution_of_real_models(name, policy):
    """On the meta device, which has the full structure and costs nothing."""
    build, shape, classifiers, pairs = MODELS_BY_NAME[name]
    with torch.device('meta'):
        model, x = build(), torch.empty(shape)
    keys, before = set(model.state_dict()), trace(model, run(model, x))
    assert len(before.pairs) == pairs
    done = convert(model, policy, example=run(model, x))

    wanted = get_policy(policy)
    assert count_norms(model) == Counter({wanted.norm: pairs})
    names = dict(model.named_modules())
    assert {conv_kind(names[conv]) for conv in before.pairs} == {'WS' if wanted.ws else 'plain'}
    assert {conv_kind(names[conv]) for conv in classifiers} <= {'plain'}
    assert trace(model, run(model, x)).pairs == before.pairs
    if wanted.norm in ('BN', 'SyncBN'):
        assert set(model.state_dict()) == keys
    if wanted.norm.startswith('BCN'):
        assert set(model.state_dict()) > keys
    assert list(done.left_out) == (classifiers if wanted.ws else [])
    assert sum(done.counts().values()) == len(done.changed) == pairs * (wanted.ws + (wanted.norm != 'BN'))

    again = convert(model, policy, example=run(model, x))
    assert again.changed == {}
    assert set(again.kept) == set(done.kept) | set(done.changed)


@pytest.mark.parametrize('name', MODELS_BY_NAME)
def test_the_order_of_modules_finds_the_same_in_these_models(name):
    build, shape, _, _ = MODELS_BY_NAME[name]
    with torch.device('meta'):
        seen, guessed, x = build(), build(), torch.empty(shape)
    with_trace = convert(seen, 'gn-ws', example=run(seen, x))
    without = convert(guessed, 'gn-ws')
    assert with_trace.changed == without.changed
    assert (with_trace.traced, without.traced) == (True, False)


@pytest.mark.parametrize('policy', ['bcn-ws', 'gn-ws', 'bn'])
@pytest.mark.parametrize('name', ['r3d_18', 'mmseg'])
def test_converted_models_learn(name, policy):
    build, shape, _, _ = MODELS_BY_NAME[name]
    model, x = build(), torch.randn(2, *shape[1:])
    convert(model, policy, example=run(model, x))
    model.train()
    sum(out.square().mean() for out in [run(model, x)()]).backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None} if name == 'r3d_18' else set()
    assert unused == set()
    with torch.no_grad():
        assert torch.isfinite(model.eval()(x)).all()


def small(norm=None, conv=nn.Conv2d):
    """Two convolutions, a norm after the first."""
    return nn.Sequential(conv(4, 8, 3, bias=False), norm or nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


def trained(norm):
    """`norm` with values other than its initial ones."""
    with torch.no_grad():
        for tensor in (*norm.parameters(), *norm.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.fill_(7)
    return norm


X = torch.randn(3, 4, 9, 9)


def test_the_report_is_plain_data_and_reads_well():
    model = nn.Sequential(*small(), nn.LayerNorm(4), FrozenBatchNorm2d(2))
    done = convert(model, 'bcn-ws', num_groups=4)
    assert done.changed == {'0': Change('Conv2d', 'WSConv2d'), '1': Change('BN', 'BCN(4)')}
    assert done.counts() == Counter({('Conv2d', 'WSConv2d'): 1, ('BN', 'BCN(4)'): 1})
    assert str(done).splitlines() == [
        'converted to bcn-ws; norms after convolutions: from the order of modules',
        '  1 BN -> BCN(4)',
        '  1 Conv2d -> WSConv2d',
        '  0 kept: they conform to the policy',
        '  left out: 5: keeps running statistics, but is not a known norm',
        '  left out: 3: no norm follows: the next module is not a norm with as many channels',
        '  left out: 4: no policy applies to LayerNorm',
    ]


@pytest.mark.parametrize('policy', ['bcn', 'bcnsync-ws', 'syncbn'])
def test_batch_norms_affine_and_statistics_go_over_as_the_same_tensors(policy):
    old = trained(nn.BatchNorm2d(8, eps=1e-3, momentum=0.3))
    model = small(old)
    model[0].weight.data -= model[0].weight.data.mean((1, 2, 3), keepdim=True)
    convert(model, policy, num_groups=4)
    new = model[1]
    assert new.weight is old.weight
    assert new.bias is old.bias
    assert new.running_mean is old.running_mean
    assert new.num_batches_tracked == 7
    assert new.eps == 1e-3
    if policy != 'syncbn':
        assert not new.warmup
        assert torch.equal(new.group_weight, torch.ones(4))
    else:
        assert new.momentum == 0.3


def test_bcn_from_batch_norm_is_its_batch_half():
    model = small(trained(nn.BatchNorm2d(8))).eval()
    halves = nn.Sequential(*model[:2], nn.GroupNorm(2, 8))
    expected = halves(X)
    convert(model, 'bcn', num_groups=2)
    torch.testing.assert_close(model[:2](X), expected)


def test_bcn_to_batch_norm_keeps_the_batch_half():
    model = small(trained(BatchChannelNorm(8, 4))).eval()
    norm = model[1]
    expected = nn.functional.batch_norm(model[0](X), norm.running_mean, norm.running_var, norm.weight, norm.bias)
    done = convert(model, 'bn')
    torch.testing.assert_close(model[:2](X), expected)
    assert type(model[1]) is nn.BatchNorm2d
    assert done.changed['1'].note == 'without the affine of the channel half'


@pytest.mark.parametrize('affine', ['group', 'channel'])
def test_bcn_to_group_norm_keeps_the_channel_half(affine):
    norm = trained(BatchChannelNorm(8, 4, affine=affine))
    scale, shift = (p.detach().repeat_interleave(8 // len(p)) for p in (norm.group_weight, norm.group_bias))
    model = small(norm)
    done = convert(model, 'gn')
    torch.testing.assert_close(model[1].weight.detach(), scale)
    torch.testing.assert_close(model[1].bias.detach(), shift)
    assert model[1].num_groups == 4
    assert done.changed['1'].note == 'without the running statistics and the affine of the batch half'


def test_group_norm_becomes_the_channel_half_exactly():
    model = small(trained(nn.GroupNorm(4, 8)))
    expected = model[:2](X)
    old = model[1]
    convert(model, 'bcn')
    new = model[1]
    assert (new.num_groups, new.channel_affine) == (4, 'channel')
    assert new.group_weight is old.weight
    # Statistics that are still 0/1 make the batch half the identity, up to eps.
    torch.testing.assert_close(model[:2].eval()(X), expected, rtol=1e-3, atol=1e-3)

    model = small(nn.GroupNorm(4, 8))
    convert(model, 'bcn')
    assert model[1].channel_affine == 'group'


def test_group_norm_and_batch_norm_exchange_their_affine():
    model = small(trained(nn.GroupNorm(4, 8)))
    old = model[1]
    convert(model, 'bn')
    assert model[1].weight is old.weight
    assert model[1].running_var.eq(1).all()
    norm = trained(model[1])
    done = convert(model, 'gn', num_groups=2)
    assert model[1].weight is norm.weight
    assert done.changed['1'].note == 'without the running statistics'


def test_synchronised_bcn_keeps_everything():
    norm = trained(BatchChannelNorm(8, 4))
    model = small(norm, WSConv2d)
    done = convert(model, 'bcnsync-ws')
    assert norm_kind(model[1]) == 'BCN (sync)'
    assert all(
        torch.equal(a, b) for a, b in zip(norm.state_dict().values(), model[1].state_dict().values(), strict=True)
    )
    assert model[1].group_weight is norm.group_weight
    assert done.kept == ('0',)


@pytest.mark.parametrize('policy', ['bn', 'gn', 'bcn'])
def test_norms_without_affine_or_statistics(policy):
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8, affine=False, track_running_stats=False))
    convert(model, policy, num_groups=4)
    assert model(X).shape == (3, 8, 9, 9)
    if policy != 'bcn':
        assert model[1].weight is None
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.GroupNorm(4, 8, affine=False))
    convert(model, policy)
    assert model(X).shape == (3, 8, 9, 9)


@pytest.mark.parametrize(
    'conv', [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.ConvTranspose2d(4, 8, 3, groups=2)]
)
@pytest.mark.parametrize('policy', ['bn-ws', 'bcn-ws'])
def test_the_norm_absorbs_the_scale_of_filters_without_mean(conv, policy):
    """With filter means, which nothing absorbs, the outputs would differ."""
    transposed = isinstance(conv, nn.ConvTranspose2d)
    with torch.no_grad():
        conv.weight.mul_(torch.rand(conv.weight.shape[0], 1, 1, 1) * 20)
        if transposed:
            conv.weight.copy_(torch.cat([w - w.mean((0, 2, 3), keepdim=True) for w in conv.weight.chunk(2)]))
        else:
            conv.weight.sub_(conv.weight.mean((1, 2, 3), keepdim=True))
    model = nn.Sequential(conv, trained(nn.BatchNorm2d(8, eps=1e-9))).eval()
    expected = model(X)
    if policy == 'bcn-ws':
        expected = nn.functional.group_norm(expected, 4, eps=1e-9)
    done = convert(model, policy, num_groups=4, example=X)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)
    assert model[0].weight is conv.weight
    assert model[0].bias is conv.bias
    note = 'filter scales moved into the running statistics, filter means lost: continue training, or calibrate'
    assert done.changed['0'].note == note
    assert f'  1 replaced, {note}' in str(done)


def test_statistics_that_two_convolutions_share_are_reset():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1), trained(nn.BatchNorm2d(8))

        def forward(self, x):
            return self.norm(self.a(x)) + self.norm(self.b(x))

    model = Shared()
    done = convert(model, 'bn-ws', example=X)
    assert count_convs(model) == Counter({'WS': 2})
    assert model.norm.running_mean.eq(0).all()
    assert model.norm.num_batches_tracked == 0
    assert done.changed['a'].note == 'running statistics after shared filters reset: continue training, or calibrate'


def test_a_constant_filter_has_no_scale_to_hand_over():
    model = small(trained(nn.BatchNorm2d(8)))
    with torch.no_grad():
        model[0].weight[3] = 0.25
    convert(model, 'bn-ws')
    assert all(torch.isfinite(buffer).all() for buffer in model[1].buffers())


@pytest.mark.parametrize('make', [WSConv2d, WSConvTranspose2d])
@pytest.mark.parametrize('variant', ['jhu', 'bit'])
def test_standardised_filters_are_baked_into_plain_ones(make, variant):
    model = nn.Sequential(make(4, 8, 3, stride=2, padding=1, groups=2, variant=variant), nn.GroupNorm(2, 8))
    expected, old = model(X), model[0]
    done = convert(model, 'gn')
    assert type(model[0]) in (nn.Conv2d, nn.ConvTranspose2d)
    assert model[0].weight is old.weight
    torch.testing.assert_close(model(X), expected)
    assert done.changed['0'].note == 'filters baked: outputs stay the same'


def test_the_variant_is_the_one_asked_for():
    model = small()
    raw = model[0].weight.detach().clone()
    convert(model, 'bn-ws', variant='bit')
    expected = nn.functional.conv2d(X, weight_standardize(raw, variant='bit'))
    torch.testing.assert_close(model[0](X), expected)
    gained = small()
    convert(gained, 'bn-ws', gain='fan_in')
    assert {conv.gain for conv in gained.modules() if isinstance(conv, WSConv2d)} == {'fan_in'}
    with pytest.raises(ValueError, match="variant='wsa': one of jhu"):
        convert(small(), 'bn-ws', variant='wsa')


def test_geometry_of_convolutions_goes_over():
    conv = nn.Conv2d(4, 8, (3, 1), stride=2, padding='valid', dilation=(1, 2), groups=2, padding_mode='reflect')
    up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1)
    model = nn.Sequential(conv, nn.BatchNorm2d(8), up, nn.BatchNorm2d(8))
    shape = model(X).shape
    convert(model, 'gn-ws', num_groups=2)
    assert model(X).shape == shape
    for old, new in ((conv, model[0]), (up, model[2])):
        for name in ('stride', 'padding', 'dilation', 'groups', 'padding_mode', 'output_padding'):
            assert getattr(new, name) == getattr(old, name)


# Where WS does not belong.


def test_ws_is_only_on_convolutions_with_a_norm():
    class Net(nn.Module):
        """A residual add before the norm, a depthwise 1x1, and a classifier."""

        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.conv, self.late = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
            self.scale, self.after = nn.Conv2d(8, 8, 1, groups=8), nn.BatchNorm2d(8)
            self.classifier, self.unused = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.norm(self.stem(x))
            x = self.late(self.conv(x) + x)
            return self.classifier(self.after(self.scale(x)))

    model = Net()
    done = convert(model, 'bcn-ws', example=X, num_groups=4)
    assert [name for name, m in model.named_modules() if conv_kind(m) == 'WS'] == ['stem']
    assert count_norms(model) == Counter({'BCN': 3})
    assert done.left_out == {
        'conv': 'no norm follows: its output goes to add()',
        'scale': 'fan-in 1: a filter of a single weight cannot be standardised',
        'classifier': 'no norm follows: its output leaves the model',
        'unused': 'no norm follows: it did not run in the traced forward',
    }
    # Without an example the order of modules decides, which does not show the residual add.
    assert 'conv' in convert(Net(), 'gn-ws', num_groups=4).changed


def test_an_activation_in_between_is_seen_in_the_order_too():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.BatchNorm2d(8))
    assert list(convert(model, 'gn-ws', num_groups=4).changed) == ['2']


def test_ws_may_be_confined_to_the_backbone():
    def model():
        return nn.ModuleDict({name: small(nn.GroupNorm(2, 8), WSConv2d) for name in ('backbone', 'backbones')})

    confined = model()
    done = convert(confined, 'gn-ws-backbone')
    assert [conv_kind(part[0]) for part in confined.values()] == ['WS', 'plain']
    assert done.counts() == Counter({('WSConv2d', 'Conv2d'): 1})


def test_the_filter_says_what_may_change():
    model = nn.ModuleDict({'backbone': small(), 'head': small()})
    done = convert(model, 'gn-ws', filter=lambda name, module: not name.startswith('head'), num_groups=4)
    assert set(done.changed) == {'backbone.0', 'backbone.1'}
    assert done.left_out['head.1'] == 'excluded by the filter'
    assert 'left out: head.0, head.1: excluded by the filter' in str(done)


@pytest.mark.parametrize(
    ('layer', 'reason'),
    [
        (lambda: timm.layers.Conv2dSame(4, 8, 3), 'Conv2dSame has its own forward'),
        (lambda: weight_norm(nn.Conv2d(4, 8, 3)), 'a hook computes the weight of Conv2d'),
        (lambda: parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), 'ParametrizedConv2d is parametrized'),
    ],
)
@pytest.mark.filterwarnings('ignore:.*weight_norm')
def test_convolutions_that_do_something_of_their_own_stay(layer, reason):
    model = nn.Sequential(layer(), nn.BatchNorm2d(8))
    old = model[0]
    done = convert(model, 'gn-ws', num_groups=4)
    assert model[0] is old
    assert done.left_out == {'0': reason}


def test_weight_standardization_of_others_is_what_a_policy_wants_or_stays():
    model = nn.Sequential(ConvWS2d(4, 8, 3), nn.GroupNorm(4, 8))
    assert convert(model, 'gn-ws').kept == ('0', '1')
    assert convert(model, 'gn').left_out == {'0': 'ConvWS2d has its own forward'}


def test_norms_that_do_something_of_their_own_stay():
    own = nn.BatchNorm2d(8)
    own.forward = lambda x: x
    hooked = nn.BatchNorm2d(8)
    hooked.register_state_dict_post_hook(lambda *args: None)
    grouped = nn.SyncBatchNorm(8)
    grouped.process_group = object()
    model = nn.Sequential(
        timm.layers.BatchNormAct2d(8), own, hooked, nn.InstanceNorm2d(8), nn.LazyBatchNorm2d(), grouped
    )
    done = convert(model, 'gn')
    assert done.changed == {}
    assert done.left_out == {
        '0': 'BatchNormAct2d has its own forward',
        '1': 'BatchNorm2d has its own forward',
        '2': 'BatchNorm2d has hooks on its state, which expect its keys',
        '3': 'no policy applies to InstanceNorm2d',
        '4': 'LazyBatchNorm2d has no shape before its first forward',
        '5': 'SyncBatchNorm synchronises within its own process group',
    }


# What every layer keeps.


def test_a_module_in_two_places_remains_one():
    conv, norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    model = nn.ModuleDict({'a': nn.Sequential(conv, norm, conv, norm), 'b': nn.Sequential(conv, norm)})
    done = convert(model, 'gn-ws', num_groups=2, example=lambda: model['b'](model['a'](X)))
    assert model['a'][0] is model['a'][2] is model['b'][0]
    assert model['a'][1] is model['a'][3] is model['b'][1]
    assert count_convs(model) == Counter({'WS': 1})
    assert count_norms(model) == Counter({'GN': 1})
    assert set(done.changed) == {'a.0', 'a.1'}


def test_modes_gradients_devices_and_dtypes_stay():
    model = small().double().train()
    model[1].eval().requires_grad_(False)
    model[0].requires_grad_(False)
    convert(model, 'bcn-ws', num_groups=4)
    assert [m.training for m in model] == [True, False, True, True]
    assert not any(p.requires_grad for m in model[:2] for p in m.parameters())
    assert all(p.requires_grad for p in model[3].parameters())
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64, torch.int64}
    convert(model.to('meta'), 'gn')
    assert all(p.is_meta for p in model.parameters())


def test_memory_format_and_tied_weights_stay():
    model = nn.Sequential(*small(), nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8)).to(
        memory_format=torch.channels_last
    )
    weight = model[0].weight
    convert(model, 'gn-ws', num_groups=4)
    assert model[0].weight is weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_hooks_go_over_and_their_handles_work():
    model, calls = small(), []
    handles = [
        model[1].register_forward_hook(lambda m, args, out: calls.append(type(m).__name__)),
        model[0].register_forward_pre_hook(lambda m, args, kwargs: calls.append('pre'), with_kwargs=True),
        model[1].register_full_backward_hook(lambda *args: calls.append('backward')),
    ]
    convert(model, 'bcn-ws', num_groups=4)
    model(X).sum().backward()
    assert calls == ['pre', 'BatchChannelNorm', 'backward']
    for handle in handles:
        handle.remove()
    model(X)
    assert len(calls) == 3


# Groups.


def test_groups_are_those_of_the_layer_or_those_asked_for():
    def groups(**options):
        model = small(nn.GroupNorm(2, 8))
        convert(model, 'bcn', **options)
        return model[1].num_groups

    assert groups() == 2
    assert groups(num_groups=8) == 8
    assert groups(channels_per_group=2) == 4
    assert groups(num_groups=6, fit_groups=True) == 4

    norm = trained(BatchChannelNorm(8, 4))
    expected = norm.group_weight.detach().repeat_interleave(2)
    model = small(norm)
    assert convert(model, 'bcn', num_groups=4).changed == {}
    assert convert(model, 'bcn', num_groups=2).counts() == Counter({('BCN(4)', 'BCN(2)'): 1})
    assert model[1].running_var is norm.running_var
    assert torch.equal(model[1].group_weight, expected)
    assert not convert(model, 'bcn', channels_per_group=8, filter=lambda name, layer: False).changed
    with pytest.raises(ValueError, match=r'^num_groups=4 and channels_per_group=2: give one of them$'):
        groups(num_groups=4, channels_per_group=2)


def test_groups_that_do_not_divide_are_refused_before_anything_changes():
    model = nn.Sequential(nn.Conv2d(4, 45, 3), nn.BatchNorm2d(45), nn.Conv2d(45, 64, 3), nn.BatchNorm2d(64))
    layers = list(model)
    message = (
        'the groups do not divide the channels of 1 norms: `1`: num_groups=32: a divisor of num_features=45 is '
        'expected, nearest: 15 and 45. Give num_groups or channels_per_group that fit, or fit_groups=True for the '
        'largest divisor below'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        convert(model, 'bcn-ws')
    assert list(model) == layers
    assert list(convert(model, 'gn', filter=lambda name, layer: name != '1').changed) == ['3']
    convert(model, 'bcn-ws', fit_groups=True)
    assert [model[1].num_groups, model[3].num_groups] == [15, 32]


# Ranks of BatchNorm, and models that cannot be converted.


@pytest.mark.parametrize(('rank', 'kind'), [(2, nn.BatchNorm1d), (3, nn.BatchNorm1d), (5, nn.BatchNorm3d)])
def test_batch_norm_gets_the_rank_of_its_input(rank, kind):
    model = nn.Sequential(nn.GroupNorm(2, 4))
    convert(model, 'bn', example=torch.randn(2, 4, 3, 3, 3)[(..., *[0] * (5 - rank))])
    assert type(model[0]) is kind
    model = nn.Sequential(nn.Conv3d(4, 4, 1), nn.ReLU(), nn.GroupNorm(2, 4))
    convert(model, 'bn')
    assert type(model[2]) is nn.BatchNorm3d


def test_a_batch_norm_of_unknown_rank_is_refused():
    message = (
        'the BatchNorm that replaces `0`, a GroupNorm, depends on the number of axes of its input, which is unknown: '
        'give an example input, or exclude the layer by filter'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        convert(nn.Sequential(nn.GroupNorm(2, 4)), 'bn')
    convert(nn.Sequential(nn.GroupNorm(2, 4)), 'syncbn')


def test_policies_have_the_names_of_the_recipes():
    assert get_policy('bcn-ws-backbone').ws_within == 'backbone'
    message = (
        "norm policy 'bnc': one of bn, syncbn, gn, gn-ws, bn-ws, bcn, bcn-ws, bcnsync-ws is expected; the suffix "
        '-backbone on one with ws limits WS to the backbone'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        get_policy('bnc')
    with pytest.raises(ValueError, match=r"^norm policy 'gn-backbone': one of "):
        convert(small(), 'gn-backbone')


def test_models_without_a_place_for_another_layer_are_refused():
    with pytest.raises(ValueError, match=r'^the model is a single BatchNorm2d: put it into a module to have it repla'):
        convert(nn.BatchNorm2d(4), 'gn')
    with pytest.raises(
        ValueError, match=r'^the model is a DataParallel: convert the inner model, before it is wrapped$'
    ):
        convert(nn.DataParallel(small()), 'gn')
    with pytest.raises(ValueError, match=r'^the model is a OptimizedModule: convert the inner model'):
        convert(torch.compile(small()), 'gn')
