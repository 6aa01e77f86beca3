import re

import pytest
import torch
import torchvision
from mmcv.cnn import ConvModule, is_norm
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import wsbcn_mm  # noqa: F401  registers the layers
from wsbcn_mm.layers import BatchChannelNorm, WSConv3d
from wsbcn_mm.microbatch import StepStatistics
from wsbcn_mm.video.models.resnet3d import BasicBlock3d, Bottleneck3d, ResNet3d

CONV, WS = {'type': 'Conv3d'}, {'type': 'WSConv3d'}
NORMS = {
    'bn': (CONV, {'type': 'BN3d'}),
    'syncbn': (CONV, {'type': 'SyncBN'}),
    'gn': (CONV, {'type': 'GN', 'num_groups': 4}),
    'gn-ws': (WS, {'type': 'GN', 'num_groups': 4}),
    'bn-ws': (WS, {'type': 'BN3d'}),
    'bcn-ws': (WS, {'type': 'BCN', 'num_groups': 4}),
    'bcn-warmup-ws': (WS, {'type': 'BCN', 'num_groups': 4, 'warmup': True}),
    'bcnsync-ws': (WS, {'type': 'BCN', 'num_groups': 4, 'statistics': 'sync'}),
}
RUNNABLE_ON_CPU = [name for name in NORMS if name != 'syncbn']
WITH_RUNNING_STATISTICS = [name for name in NORMS if 'gn' not in name]

R3D: dict = {}
I3D = {
    'conv1_kernel': (5, 7, 7),
    'conv1_stride_t': 2,
    'with_pool1': True,
    'pool1_stride_t': 2,
    'with_pool2': True,
    'temporal_strides': (1, 1, 1, 1),
    'inflate': ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0)),
    'inflate_style': '3x1x1',
}
SLOWONLY = {
    'conv1_kernel': (1, 7, 7),
    'with_pool1': True,
    'temporal_strides': (1, 1, 1, 1),
    'inflate': (0, 0, 1, 1),
    'inflate_style': '3x1x1',
}
R2PLUS1D = {'factorize': True, 'mid_channels_divisor': 4}
# depth, arguments, (T, H, W) after a clip of 8 x 32 x 32
VARIANTS = {
    'r3d-18': (18, R3D, (1, 2, 2)),
    'r3d-34': (34, R3D, (1, 2, 2)),
    'r3d-50': (50, R3D, (1, 2, 2)),
    'i3d-r50': (50, I3D, (1, 1, 1)),
    'slowonly-r50': (50, SLOWONLY, (8, 1, 1)),
    'r2plus1d-18': (18, R2PLUS1D, (1, 2, 2)),
    'r2plus1d-34': (34, R2PLUS1D, (1, 2, 2)),
}


def build(depth: int = 18, norm: str = 'bn', base_channels: int = 8, **kwargs) -> ResNet3d:
    torch.manual_seed(0)
    conv_cfg, norm_cfg = NORMS[norm]
    return ResNet3d(depth, base_channels=base_channels, conv_cfg=conv_cfg, norm_cfg=norm_cfg, **kwargs)


def clips(n: int = 1, frames: int = 8, size: int = 32) -> Tensor:
    return torch.randn(n, 3, frames, size, size, generator=torch.Generator().manual_seed(0))


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if is_norm(m)]


def convs_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, _ConvNd)]


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize('norm', RUNNABLE_ON_CPU)
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_trains_with_every_norm(variant, norm):
    depth, kwargs, size = VARIANTS[variant]
    model = build(depth, norm, **kwargs)
    out = model(clips(n=2))
    assert out.shape == (2, model.out_channels, *size)
    out.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    before = running_statistics(model)
    with torch.no_grad():
        model.eval()(clips())
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_syncbn_runs_on_one_cpu_process_as_mmengine_reverts_it():
    model = revert_sync_batchnorm(build(18, 'syncbn'))
    model(clips(n=2)).mean().backward()
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_conv_cfg_and_norm_cfg_reach_every_layer(variant, norm):
    depth, kwargs, _ = VARIANTS[variant]
    model = build(depth, norm, **kwargs)
    convs, norms = convs_of(model), norms_of(model)
    assert len(convs) == len(norms)
    assert all(isinstance(conv, WSConv3d) == norm.endswith('ws') for conv in convs)
    assert all(conv.bias is None for conv in convs)
    kinds = {'bn': nn.BatchNorm3d, 'syncbn': nn.SyncBatchNorm, 'gn': nn.GroupNorm}
    kind = kinds.get(norm.removesuffix('-ws'), BatchChannelNorm)
    assert all(isinstance(m, kind) for m in norms)


def torchvision_key(name: str) -> str:
    """Map our parameter name to VideoResNet's."""
    name = re.sub(r'^conv1\.conv\.conv_s', 'stem.0', name)
    name = re.sub(r'^conv1\.conv\.bn_s', 'stem.1', name)
    name = re.sub(r'^conv1\.conv\.conv_t', 'stem.3', name)
    name = re.sub(r'^conv1\.bn', 'stem.{bn}', name)
    name = re.sub(r'^conv1\.conv', 'stem.0', name)
    name = re.sub(r'(conv\d)\.conv\.conv_s', r'\1.0.0', name)
    name = re.sub(r'(conv\d)\.conv\.bn_s', r'\1.0.1', name)
    name = re.sub(r'(conv\d)\.conv\.conv_t', r'\1.0.3', name)
    name = re.sub(r'(conv\d|downsample)\.conv', r'\1.0', name)
    return re.sub(r'(conv\d|downsample)\.bn', r'\1.1', name)


@pytest.mark.parametrize(
    ('reference', 'kwargs', 'stem_bn'),
    [('r3d_18', {}, '1'), ('r2plus1d_18', {'factorize': True}, '4')],
)
@pytest.mark.parametrize('training', [False, True])
def test_same_function_as_torchvision(reference, kwargs, stem_bn, training):
    theirs = getattr(torchvision.models.video, reference)(weights=None)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if 'bias' not in name else -0.5))
    ours = ResNet3d(18, **kwargs)
    state = theirs.state_dict()
    mapped = {name: state.pop(torchvision_key(name).replace('{bn}', stem_bn)) for name in ours.state_dict()}
    assert list(state) == ['fc.weight', 'fc.bias']
    ours.load_state_dict(mapped)

    ours.train(training)
    theirs.train(training)
    features = {}
    theirs.layer4.register_forward_hook(lambda module, args, out: features.update(out=out))
    x = clips(n=2, frames=8, size=40)
    with torch.no_grad():
        theirs(x)
        out = ours(x)
    torch.testing.assert_close(out, features['out'], rtol=1e-5, atol=1e-5 * float(features['out'].abs().max()))


def test_parameter_names_are_mmaction2s():
    names = [name for name, _ in build(50, 'bn', **I3D).named_parameters()]
    assert names[:3] == ['conv1.conv.weight', 'conv1.bn.weight', 'conv1.bn.bias']
    block = [n.removeprefix('layer1.0.') for n in names if n.startswith('layer1.0.')]
    modules = ['conv1', 'conv2', 'conv3', 'downsample']
    assert sorted(block) == sorted(f'{m}.{p}' for m in modules for p in ('conv.weight', 'bn.weight', 'bn.bias'))
    assert 'layer4.2.conv3.bn.bias' in names

    factorized = dict(build(18, 'bn', **R2PLUS1D).named_parameters())
    assert {'layer1.0.conv1.conv.conv_s.weight', 'layer1.0.conv1.conv.bn_s.weight'} <= set(factorized)
    assert {'layer1.0.conv1.conv.conv_t.weight', 'layer1.0.conv1.bn.weight'} <= set(factorized)


def test_a_norm_is_named_after_its_kind():
    assert 'layer1.0.conv1.gn.weight' in dict(build(18, 'gn').named_parameters())
    assert 'layer1.0.conv1.conv.gn_s.weight' in dict(build(18, 'gn', **R2PLUS1D).named_parameters())
    assert {'conv1.bn.weight', 'conv1.bn.group_weight'} <= set(dict(build(18, 'bcn-ws').named_parameters()))


def test_inflation_pattern_decides_which_blocks_see_time():
    model = build(50, **I3D)
    kernels = [[block.conv1.kernel_size[0] for block in getattr(model, f'layer{i}')] for i in range(1, 5)]
    assert kernels == [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]
    slow = build(50, **SLOWONLY)
    assert slow.conv1.kernel_size == (1, 7, 7)
    assert [slow.layer2[0].conv1.kernel_size[0], slow.layer3[0].conv1.kernel_size[0]] == [1, 3]
    assert build(50).layer1[0].conv2.kernel_size == (3, 3, 3)
    assert build(18, inflate=(0, 1, 1, 1)).layer1[0].conv2.kernel_size == (1, 3, 3)


def test_slowonly_keeps_every_frame_apart_until_the_third_stage():
    model = build(50, 'bn', **SLOWONLY, out_indices=(0, 1, 2, 3)).eval()
    x = clips()
    changed = x.clone()
    changed[:, :, 5] += 1
    with torch.no_grad():
        moved = [
            (a - b).abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()
            for a, b in zip(model(x), model(changed), strict=True)
        ]
    assert moved[:2] == [[5], [5]]
    assert len(moved[2]) > 1


def test_out_indices_returns_the_stages_and_their_channels():
    model = build(18, out_indices=(1, 3))
    features = model(clips(n=2))
    assert [f.shape[1] for f in features] == [16, 64]
    assert model.feature_channels == [8, 16, 32, 64]
    assert build(18, num_stages=2)(clips(n=2)).shape == (2, 16, 4, 8, 8)


def test_dilation_keeps_the_resolution_of_a_stage():
    model = build(50, **(SLOWONLY | {'spatial_strides': (1, 2, 2, 1), 'dilations': (1, 1, 1, 2)}))
    assert model(clips(n=2)).shape[-2:] == (2, 2)
    assert model.layer4[0].conv2.conv.dilation == (1, 2, 2)


def test_mid_channels():
    published = ResNet3d(18, factorize=True)
    assert published.conv1.conv.conv_s.out_channels == 45
    assert published.layer1[0].conv1.conv.conv_s.out_channels == 144
    assert published.layer2[0].conv2.conv.conv_s.out_channels == 230
    rounded = ResNet3d(18, factorize=True, mid_channels_divisor=32, norm_cfg={'type': 'GN', 'num_groups': 32})
    mids = {m.conv_s.out_channels for m in rounded.modules() if hasattr(m, 'conv_s')}
    assert mids == {32, 160, 224, 288, 448, 576, 928, 1152}


def test_convolutions_start_from_kaiming_over_the_fan_out():
    conv = ResNet3d(18).layer3[1].conv2.conv
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 27)) ** 0.5, rel=0.01)
    conv_t = ResNet3d(18, factorize=True).layer3[1].conv2.conv.conv_t
    assert conv_t.weight.std().item() == pytest.approx((2 / (256 * 3)) ** 0.5, rel=0.01)


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('norm', NORMS)
def test_zero_init_residual_starts_every_block_as_its_shortcut(norm, depth):
    model = build(depth, norm, zero_init_residual=True)
    model.init_weights()
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock3d | Bottleneck3d)]
    for block in blocks:
        last = block.last_norm
        if isinstance(last, BatchChannelNorm):
            assert last.group_weight.eq(0).all()
            assert last.weight.eq(1).all()
        else:
            assert last.weight.eq(0).all()
    others = [m for m in norms_of(model) if m not in {b.last_norm for b in blocks}]
    assert all(m.weight.eq(1).all() for m in others)
    if norm != 'syncbn':
        x = torch.rand(2, model.feature_channels[0], 4, 8, 8)
        torch.testing.assert_close(model.layer1[1](x), x)
        model(clips(n=2)).square().mean().backward()
        grads = [p.grad for p in model.parameters()]
        assert all(g.isfinite().all() for g in grads)
        assert max(float(g.abs().max()) for g in grads) < 1e3


def test_residual_branches_start_live_by_default():
    assert all(m.weight.eq(1).all() for m in norms_of(build(18, 'bn')))


@pytest.mark.parametrize('norm', WITH_RUNNING_STATISTICS)
def test_norm_eval_freezes_statistics_and_leaves_parameters_learning(norm):
    model = build(18, norm, norm_eval=True, **R2PLUS1D).train()
    assert all(not m.training for m in norms_of(model))
    assert model.layer1.training
    before = running_statistics(model)
    if norm == 'syncbn':
        return
    model(clips(n=2)).mean().backward()
    assert before
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert all(m.weight.grad is not None for m in norms_of(model))


@pytest.mark.parametrize('norm', RUNNABLE_ON_CPU)
def test_frozen_stages_neither_learn_nor_move_statistics(norm):
    model = build(18, norm, frozen_stages=2).train()
    frozen = ('conv1.', 'layer1.', 'layer2.')
    before = running_statistics(model)
    model(clips(n=2)).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (not name.startswith(frozen)), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith(frozen), name


def test_frozen_stages_zero_is_the_stem_and_minus_one_nothing():
    model = build(18, frozen_stages=0).train()
    assert not model.conv1.training
    assert model.layer1.training
    assert all(p.requires_grad for p in build(18).parameters())


@pytest.mark.parametrize('kwargs', [{}, {'frozen_stages': 1}], ids=['all', 'frozen'])
@pytest.mark.parametrize('norm', RUNNABLE_ON_CPU)
def test_checkpointing_changes_neither_gradients_nor_statistics(norm, kwargs):
    plain, saving = build(18, norm, **kwargs), build(18, norm, with_cp=True, **kwargs)
    saving.load_state_dict(plain.state_dict())
    for step in range(3):
        x = clips(n=2) * (step + 1) + step
        for model in (plain, saving):
            model.zero_grad()
            model(x).square().mean().backward()
            torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01).step()
        for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
            assert a.grad is None if b.grad is None else torch.equal(a.grad, b.grad), name
    for name, value in plain.state_dict().items():
        assert torch.equal(value, saving.state_dict()[name]), name


@pytest.mark.parametrize('norm', ['bn', 'bcn-ws'])
def test_checkpointing_keeps_statistics_apart_when_two_forwards_precede_the_backward(norm):
    plain, saving = build(18, norm), build(18, norm, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    for model in (plain, saving):
        statistics = StepStatistics(model)
        (model(clips()).square().mean() + model(3 * clips() + 1).square().mean()).backward()
        statistics.commit()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, saving.state_dict()[name]), name


def test_checkpointing_saves_fewer_activations():
    def saved_bytes(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            model(clips(n=2))
        return sum(sizes)

    assert saved_bytes(build(34, with_cp=True)) < saved_bytes(build(34)) / 2


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'depth': 20}, 'depth=20: one of 18, 34, 50, 101, 152 is expected'),
        ({'num_stages': 5}, 'num_stages=5: 1 to 4 is expected'),
        ({'inflate_style': '3x3'}, "inflate_style='3x3': one of 3x3x3, 3x1x1 is expected"),
        ({'frozen_stages': 5}, 'frozen_stages=5: -1 (nothing) to 4 (every stage) is expected'),
        ({'conv1_kernel': (4, 7, 7)}, 'conv1_kernel=(4, 7, 7): three odd sizes (T, H, W) are expected'),
        ({'spatial_strides': (1, 2)}, 'spatial_strides=(1, 2): a value for each of the 4 stages is expected'),
        (
            {'inflate': ((1, 0, 1), 1, 1, 1)},
            'inflate[0]=(1, 0, 1): one value, or one for each of the 2 blocks, is expected',
        ),
        ({'out_indices': (4,)}, 'out_indices=(4,): stages from 0 to 3 are expected'),
        (
            {'conv_cfg': {'type': 'WSConv2d'}},
            "conv_cfg={'type': 'WSConv2d'} builds WSConv2d: a 3D convolution such as Conv3d or WSConv3d is expected",
        ),
        (
            {'norm_cfg': {'type': 'BN'}},
            "norm_cfg={'type': 'BN'} builds BatchNorm2d: a norm of 5D inputs such as BN3d, SyncBN, GN or BCN is "
            'expected',
        ),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        ResNet3d(**({'depth': 18, 'base_channels': 8} | kwargs))


def test_a_ws_convolution_of_fan_in_one_is_refused():
    with pytest.raises(ValueError, match='has fan-in 1'):
        ResNet3d(18, base_channels=1, conv_cfg=WS)


def test_blocks_are_mmcv_conv_modules():
    assert all(isinstance(getattr(build(50).layer1[0], f'conv{i}'), ConvModule) for i in (1, 2, 3))
