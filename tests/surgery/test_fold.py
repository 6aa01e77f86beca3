"""Folding: equal outputs from only torch's own layers, in any surrounding, and no training afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from torch import nn
from torchvision.models import resnet18
from torchvision.models.video import r3d_18

from wsbcn_mm import layers
from wsbcn_mm.layers import BatchChannelNorm, WSConv1d, WSConv2d, WSConv3d
from wsbcn_mm.ops.ws.weight_standardization import VARIANTS
from wsbcn_mm.surgery.fold import fold, largest_difference, require_folded
from wsbcn_mm.surgery.kinds import count_convs, count_norms

ROOT = Path(__file__).parents[2]
CONVS = {1: WSConv1d, 2: WSConv2d, 3: WSConv3d}
TRANSPOSED = {n: getattr(layers, f'WSConvTranspose{n}d') for n in (1, 2, 3)}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def trained(model):
    """`model` with parameters and statistics that all differ from their initial values."""
    for module in model.modules():
        if isinstance(module, BatchChannelNorm | nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
            for name, parameter in module.named_parameters(recurse=False):
                nn.init.normal_(parameter, 1.0 if name.endswith('weight') else 0.0, 0.3)
            if getattr(module, 'running_mean', None) is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.05, 4.0)
        elif isinstance(module, nn.modules.conv._ConvNd) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model


def image(rank, channels=4, samples=2):
    return torch.randn(samples, channels, *(7, 6, 5)[:rank])


def assert_folds(model, *inputs, tolerance=1e-5):
    """Fold, compare with the original in evaluation, and return the folded model and the report."""
    folded, report = fold(model, *inputs)
    require_folded(folded)
    with torch.no_grad():
        expected = model.eval()(*inputs)
        torch.testing.assert_close(folded(*inputs), expected, rtol=tolerance, atol=tolerance)
    assert all(type(m).__module__.startswith('torch.nn.') for m in folded.modules() if not list(m.children()))
    return folded, report


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('rank', CONVS)
def test_a_convolution_absorbs_the_batch_half(rank, variant):
    gain = 'fan_in' if variant == 'timm' else None
    conv = CONVS[rank](4, 6, 3, stride=2, padding=1, bias=variant == 'bit', variant=variant, gain=gain)
    model = trained(nn.Sequential(conv, BatchChannelNorm(6, 3, eps=1e-3), nn.ReLU()))
    folded, report = assert_folds(model, image(rank))
    assert [type(module) for module in folded] == [PLAIN[rank], nn.GroupNorm, nn.ReLU]
    assert folded[0].bias is not None
    assert (folded[1].num_groups, folded[1].eps) == (3, 1e-3)
    assert (report.baked, report.absorbed, report.separate, report.left) == (('0',), {'1': '0'}, {}, ())
    assert report.exact_difference < 1e-12
    assert 0 <= report.difference <= 1e-5 < report.scale
    assert 0 < report.rounding <= 1e-5


@pytest.mark.parametrize('rank', TRANSPOSED)
@pytest.mark.parametrize('groups', [1, 2])
def test_a_transposed_convolution_absorbs_it_too(rank, groups):
    conv = TRANSPOSED[rank](4, 6, 3, stride=2, padding=1, output_padding=1, groups=groups, dilation=2)
    folded, report = assert_folds(trained(nn.Sequential(conv, BatchChannelNorm(6, 3))), image(rank))
    assert folded[0].transposed
    assert not isinstance(folded[0], layers.ws_conv._WSConv)
    assert report.absorbed == {'1': '0'}


@pytest.mark.parametrize('affine', ['group', 'channel'])
@pytest.mark.parametrize('statistics', ['estimated', 'batch', 'sync'])
@pytest.mark.parametrize(
    'conv',
    [
        WSConv2d(4, 8, 3, padding='same', padding_mode='reflect', dilation=2, groups=2),
        nn.Conv2d(4, 8, 1, groups=4),
        nn.ConvTranspose2d(4, 8, 2, 2, groups=2, bias=False),
    ],
    ids=['WS', 'plain', 'plain transposed'],
)
def test_every_kind_of_statistics_and_affine_folds(conv, statistics, affine):
    norm = BatchChannelNorm(8, 4, statistics=statistics, affine=affine)
    folded, report = assert_folds(trained(nn.Sequential(conv, norm)), image(2))
    assert report.absorbed == {'1': '0'}
    assert folded[1].weight.shape == (8,)


def test_ws_before_group_norm_is_baked_bit_for_bit():
    model = trained(nn.Sequential(WSConv2d(4, 8, 3, bias=False), nn.GroupNorm(4, 8), WSConv2d(8, 8, 3, bias=False)))
    folded, report = fold(model, image(2))
    assert report.difference == 0
    assert torch.equal(folded[0].weight, model[0].standardized_weight())
    assert folded[0].bias is None
    assert report.baked == ('0', '2')
    assert count_convs(folded) == {'plain': 2}


class PreActivation(nn.Module):
    def __init__(self, conv, width, rank):
        super().__init__()
        self.norm1, self.conv1 = BatchChannelNorm(width, 2), conv(width, width, 3, padding=1)
        self.norm2, self.conv2 = BatchChannelNorm(width, 2), conv(width, width, 3, padding=1)

    def forward(self, x):
        out = self.conv1(self.norm1(x).relu())
        return x + self.conv2(self.norm2(out).relu())


class UsedTwice(nn.Module):
    """The convolution's output also bypasses the norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = WSConv2d(4, 4, 3), BatchChannelNorm(4, 2)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class SharedNorm(nn.Module):
    """Two convolutions with one norm, and one convolution twice with another."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = WSConv2d(4, 4, 3), WSConv2d(4, 4, 3), BatchChannelNorm(4, 2)
        self.c, self.own = WSConv2d(4, 4, 3), BatchChannelNorm(4, 2)

    def forward(self, x):
        return {'levels': [self.norm(self.a(x)), self.norm(self.b(x)), self.own(self.c(x)), self.own(self.c(2 * x))]}


@pytest.mark.parametrize('rank', CONVS)
def test_pre_activation_keeps_what_no_convolution_can_absorb(rank):
    folded, report = assert_folds(trained(PreActivation(CONVS[rank], 4, rank)), image(rank))
    assert report.separate == {'norm1': 'no convolution directly before it'}
    assert report.absorbed == {'norm2': 'conv1'}
    batch, group = folded.norm1
    assert type(batch) is {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank]
    assert type(group) is nn.GroupNorm
    assert 'norm1 kept: no convolution directly before it' in str(report)


def test_vectors_fold():
    model = trained(nn.Sequential(nn.Linear(4, 8), BatchChannelNorm(8, 2)))
    folded, report = assert_folds(model, torch.randn(5, 4))
    assert type(folded[1][0]) is nn.BatchNorm1d
    assert report.separate == {'1': 'no convolution directly before it'}


def test_an_output_that_is_used_elsewhere_is_not_scaled():
    _, report = assert_folds(trained(UsedTwice()), image(2))
    assert report.separate == {'norm': 'the output of conv also goes to add()'}
    assert report.baked == ('conv',)


def test_shared_layers():
    folded, report = assert_folds(trained(SharedNorm()), image(2))
    assert report.separate == {'norm': 'runs after 2 convolutions: a, b'}
    assert report.absorbed == {'own': 'c'}
    assert isinstance(folded.norm, nn.Sequential)


def test_a_layer_that_stands_in_two_places_is_replaced_in_both():
    shared = nn.Sequential(WSConv2d(4, 4, 1), BatchChannelNorm(4, 2))
    folded, _ = assert_folds(trained(nn.Sequential(shared, nn.ReLU(), shared, shared[0])), image(2))
    assert folded[0] is folded[2]
    assert folded[3] is folded[0][0]


@pytest.mark.parametrize('model', [WSConv2d(4, 8, 3), BatchChannelNorm(4, 2)])
def test_a_single_layer_folds(model):
    assert_folds(trained(model), image(2))


def test_a_convolution_of_another_package_is_left_and_reported():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = trained(nn.Sequential(Doubled(4, 4, 1), BatchChannelNorm(4, 2)))
    x = image(2)
    folded, report = fold(model, x)
    assert report.left == ('0',)
    assert report.separate == {'1': '0 before it cannot be replaced: Doubled has its own forward'}
    assert '0 left: its class is neither from torch nor from this package' in str(report)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model.eval()(x))


def test_the_original_stays_as_it_was():
    model = trained(nn.Sequential(WSConv2d(4, 4, 1), BatchChannelNorm(4, 2))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fold(model, image(2))
    assert model.training
    assert model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(image(2)).sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype):
    model = trained(nn.Sequential(WSConv2d(4, 8, 3), BatchChannelNorm(8, 4))).to(dtype)
    folded, report = fold(model, image(2).to(dtype))
    assert {value.dtype for value in folded.state_dict().values()} == {dtype}
    assert report.exact_difference < 1e-12
    assert report.difference < {torch.bfloat16: 0.05, torch.float64: 1e-12}[dtype]
    assert report.rounding < report.difference + 0.05


def test_a_wide_range_of_variances_folds_exactly():
    """Variances from below eps to far above it: a fold with eps in the wrong place would differ a lot."""
    model = trained(nn.Sequential(WSConv2d(4, 8, 3), BatchChannelNorm(8, 4, eps=1e-3)))
    model[1].running_var.copy_(torch.logspace(-7, 4, 8))
    model[1].running_mean.mul_(10)
    folded, _ = fold(model, image(2), tolerance=1e-12)
    assert folded[1].eps == 1e-3


def convert_(model, rank):
    """Every convolution before a BatchNorm becomes a WS convolution, every BatchNorm a BCN."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PLAIN[rank]):
                geometry = dict(stride=child.stride, padding=child.padding, dilation=child.dilation)
                new = CONVS[rank](child.in_channels, child.out_channels, child.kernel_size, bias=False, **geometry)
                setattr(parent, name, new)
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, BatchChannelNorm(child.num_features, 16))
    return model


@pytest.mark.parametrize(
    ('build', 'rank', 'inputs'),
    [(resnet18, 2, [(1, 3, 64, 64), (2, 3, 33, 57)]), (r3d_18, 3, [(1, 3, 4, 32, 32), (1, 3, 3, 25, 40)])],
    ids=['2D', '3D'],
)
def test_whole_networks_fold_and_fit_other_inputs_too(build, rank, inputs):
    model = trained(convert_(build(num_classes=10), rank)).eval()
    folded, report = assert_folds(model, torch.randn(inputs[0]))
    assert len(report.absorbed) == len(report.baked) == 20
    assert not report.separate
    assert count_norms(folded) == {'GN': 20}
    other = 3 * torch.randn(inputs[1]) + 1
    with torch.no_grad():
        torch.testing.assert_close(folded(other), model(other), rtol=1e-5, atol=1e-5)


def conv_module(norm_cfg):
    return ConvModule(4, 8, 3, conv_cfg=dict(type='WSConv2d'), norm_cfg=norm_cfg)


@pytest.mark.parametrize('norm', ['BN', 'BCN'])
def test_fusing_conv_and_bn_afterwards_is_exact(norm):
    groups = dict(num_groups=4) if norm == 'BCN' else {}
    block = trained(nn.Sequential(conv_module(dict(type=norm, **groups)), PreActivation(WSConv2d, 8, 2))).eval()
    x = image(2)
    folded, report = fold(block, x)
    assert report.absorbed == {'1.norm2': '1.conv1'} | ({'0.bn': '0.conv'} if norm == 'BCN' else {})
    fused = fuse_conv_bn(folded)
    assert type(fused[0].bn) is (nn.Identity if norm == 'BN' else nn.GroupNorm)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), block(x), rtol=1e-5, atol=1e-5)


def test_folded_models_refuse_to_train():
    folded, _ = fold(trained(nn.Sequential(WSConv2d(4, 4, 1), BatchChannelNorm(4, 2))), image(2))
    message = r'^this model is folded for deployment and cannot be trained: its filters would no longer be standardi'
    with pytest.raises(RuntimeError, match=message):
        folded.train()(image(2))
    assert folded.eval()(image(2)).requires_grad is False
    folded.requires_grad_(True)
    with pytest.raises(RuntimeError, match=message):
        folded(image(2))
    with torch.no_grad():
        assert folded(image(2)).isfinite().all()


def test_what_the_example_does_not_reach_is_refused():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aux = WSConv2d(4, 4, 1), BatchChannelNorm(4, 2)

        def forward(self, x):
            return self.main(x)

    with pytest.raises(ValueError, match=r'^the example input does not reach 1 BCN \(the first: `aux`\): fold the pa'):
        fold(Auxiliary(), image(2))


def test_more_axes_than_a_batch_norm_takes_are_refused():
    with pytest.raises(ValueError, match=r'^BCN `0` receives inputs of \[6\] axes: one number from 2 to 5 is expecte'):
        fold(nn.Sequential(BatchChannelNorm(4, 2)), torch.randn(1, 4, 2, 2, 2, 2))


def test_a_difference_is_an_error():
    class Returned(nn.Module):
        """The raw output of the convolution leaves the model; no operation shows it."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = WSConv2d(4, 4, 3), BatchChannelNorm(4, 2)

        def forward(self, x):
            y = self.conv(x)
            return y, self.norm(y)

    with pytest.raises(RuntimeError, match=r'^the folded model differs from the original by \d\.\de[+-]\d+, with '):
        fold(trained(Returned()), image(2))


def test_outputs_are_compared_tensor_by_tensor():
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([2.0])
    assert largest_difference([a, {'b': b}], (a + 0.5, [b - 1])) == (1, 4)
    difference, _ = largest_difference([a, b], [a, b * torch.nan])
    assert difference != difference
    for other in ([a], [a, b[None]]):
        with pytest.raises(ValueError, match=r'shorter|^outputs with shapes \[\(2,\), \(1,\)\] cannot be compared$'):
            largest_difference([a, b], other)
    with pytest.raises(ValueError, match=r'^outputs with shapes \[\] cannot be compared$'):
        largest_difference('text', 'text')


def test_unfolded_layers_are_named():
    message = r'^the model still has 1 BatchChannelNorm, 2 WSConv2d: fold it first, with wsbcn_mm\.surgery\.fold\.fold$'
    with pytest.raises(ValueError, match=message):
        require_folded(nn.Sequential(WSConv2d(4, 4, 1), WSConv2d(4, 4, 1), BatchChannelNorm(4, 2)))


def test_the_weights_load_into_torch_layers_where_this_package_is_not_installed(tmp_path):
    model = trained(nn.Sequential(WSConv2d(4, 8, 3), BatchChannelNorm(8, 4), nn.ReLU(), BatchChannelNorm(8, 2)))
    x = image(2)
    folded, _ = fold(model, x)
    torch.save({'state_dict': folded.state_dict(), 'x': x, 'y': folded(x)}, tmp_path / 'folded.pth')
    program = f"""
import sys
sys.modules['wsbcn_mm'] = None
import torch
from torch import nn
saved = torch.load({str(tmp_path / 'folded.pth')!r}, weights_only=True)
model = nn.Sequential(
    nn.Conv2d(4, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
)
model.load_state_dict(saved['state_dict'])
assert torch.equal(model.eval()(saved['x']), saved['y'])
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
