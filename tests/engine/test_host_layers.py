"""What mmengine and mmcv do to the layers: find them, decay them, initialise them, convert, fuse and average them."""

import copy
import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer, build_norm_layer, fuse_conv_bn, is_norm
from mmcv.cnn.bricks.norm import infer_abbr
from mmengine.model import (
    BaseModule,
    ExponentialMovingAverage,
    convert_sync_batchnorm,
    kaiming_init,
    revert_sync_batchnorm,
)
from mmengine.model.utils import _BatchNormXd
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import wsbcn_mm
from wsbcn_mm import layers
from wsbcn_mm.engine.registration import CONVS, register_layers
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d

BCN = {'type': 'BCN', 'num_groups': 4}
WS = {'type': 'WSConv2d'}
FUSING_REFUSED = (
    'WSConv2d cannot be fused with the norm after it: it standardises its weight in every forward, which undoes the '
    'factor that fusing puts on it'
)
EFFICIENT_EVAL_REFUSED = (
    'WSConv2d standardises its weight in every forward, which undoes a factor that conv-bn fusing puts on it: '
    'set efficient_conv_bn_eval=False'
)


def trained(module, shape=(4, 3, 9, 9)):
    """In evaluation mode, after batches that moved its statistics away from 0 and 1."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    with torch.no_grad():
        for _ in range(5):
            module(torch.randn(shape) * 2 + 1)
    return module.eval()


def build_all() -> dict[str, str]:
    """Type names of what the host's builders make of every registered name."""
    built = {}
    for name in ('WSConv1d', 'WSConv2d', 'WSConv3d', 'WSConvTranspose1d', 'WSConvTranspose2d', 'WSConvTranspose3d'):
        conv = build_conv_layer({'type': name, 'variant': 'bcn'}, 4, 8, 3, padding=1, bias=False)
        out = conv(torch.randn(1, 4, *[5] * int(name[-2])))
        built[name] = f'{type(conv).__name__} {conv.variant} {tuple(out.shape)}'
    norm_name, norm = build_norm_layer({'type': 'BCN', 'num_groups': 2, 'rate': 0.01, 'warmup': True}, 8, postfix=3)
    built['BCN'] = f'{norm_name} {type(norm).__name__} {norm.rate} {norm.warmup}'
    module = ConvModule(3, 8, 3, conv_cfg={'type': 'WSConv2d'}, norm_cfg={'type': 'BCN', 'num_groups': 2})
    module(torch.randn(1, 3, 5, 5)).sum().backward()
    built['ConvModule'] = f'{type(module.conv).__name__} {module.conv.bias} {module.norm_name}'
    return built


def build_under_scope(scope: str | None) -> dict[str, str]:
    with DefaultScope.overwrite_default_scope(scope):
        return build_all()


BUILT = {
    **{name: f'{name} bcn {(1, 8, *[5] * int(name[-2]))}' for name in CONVS},
    'BCN': 'bn3 BatchChannelNorm 0.01 True',
    'ConvModule': 'WSConv2d None bn',
}
SCOPES = [None, 'mmengine', 'mmseg']


@pytest.mark.parametrize('scope', SCOPES)
def test_builders_under_every_scope(scope):
    assert build_under_scope(scope) == BUILT


def test_builders_in_a_spawned_worker():
    """A DataLoader worker or a launched rank starts with an empty registry."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        assert list(pool.map(build_under_scope, SCOPES)) == [BUILT] * 3


def test_second_import_changes_nothing():
    before = {name: MODELS.get(name) for name in (*CONVS, 'BCN')}
    register_layers()
    importlib.reload(wsbcn_mm)
    assert {name: MODELS.get(name) for name in before} == before
    assert before['BCN'] is BatchChannelNorm
    assert before['WSConvTranspose3d'] is layers.WSConvTranspose3d


def test_a_name_that_another_package_took_is_not_overwritten():
    class Foreign(nn.Module):
        pass

    original = MODELS.module_dict['BCN']
    MODELS.register_module(name='BCN', module=Foreign, force=True)
    try:
        with pytest.raises(KeyError, match='BCN is already registered'):
            register_layers()
    finally:
        MODELS.register_module(name='BCN', module=original, force=True)


def test_no_name_of_the_host_is_taken():
    assert not {'BN', 'GN', 'SyncBN', 'ConvWS', 'ConvAWS', 'Conv2d'} & {*CONVS, 'BCN'}
    assert MODELS.get('ConvWS').__module__.startswith('mmcv')


def test_the_host_takes_bcn_for_a_norm():
    norm = BatchChannelNorm(8, 4)
    assert is_norm(norm)
    assert infer_abbr(BatchChannelNorm) == 'bn'
    assert not is_norm(WSConv2d(3, 8, 3))


def test_group_error_reaches_the_user_through_the_builder():
    with pytest.raises(
        ValueError, match=r'num_groups=32: a divisor of num_features=48 is expected, nearest: 24 and 48'
    ):
        build_norm_layer({'type': 'BCN'}, 48)
    name, norm = build_norm_layer({'type': 'BCN', 'channels_per_group': 8}, 48)
    assert (name, norm.num_groups) == ('bn', 6)


def test_requires_grad_false_freezes_the_parameters():
    _, norm = build_norm_layer({**BCN, 'requires_grad': False}, 8)
    assert not any(p.requires_grad for p in norm.parameters())
    assert len(list(norm.parameters())) == 4


def test_weight_decay_spares_the_four_norm_parameters_and_no_weight():
    model = nn.ModuleDict(
        {
            'block': ConvModule(3, 8, 3, conv_cfg=WS, norm_cfg=BCN),
            'channel': BatchChannelNorm(8, 4, affine='channel'),
            'classifier': nn.Conv2d(8, 2, 1),
        }
    )
    wrapper = build_optim_wrapper(
        model,
        {
            'type': 'OptimWrapper',
            'optimizer': {'type': 'SGD', 'lr': 0.1, 'weight_decay': 1e-4},
            'paramwise_cfg': {'norm_decay_mult': 0.0},
        },
    )
    decay = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            decay[id(parameter)] = group['weight_decay']
    spared = {name for name, p in model.named_parameters() if decay[id(p)] == 0}
    affine = ('weight', 'bias', 'group_weight', 'group_bias')
    assert spared == {f'{norm}.{p}' for norm in ('block.bn', 'channel') for p in affine}
    assert {n for n, p in model.named_parameters()} - spared == {
        'block.conv.weight',
        'classifier.weight',
        'classifier.bias',
    }


@pytest.mark.parametrize(
    'convert',
    [nn.SyncBatchNorm.convert_sync_batchnorm, convert_sync_batchnorm, revert_sync_batchnorm],
    ids=['torch', 'mmengine', 'revert'],
)
def test_sync_conversion_leaves_bcn_alone(convert):
    model = nn.Sequential(WSConv2d(3, 8, 3), BatchChannelNorm(8, 4, warmup=True), nn.ReLU())
    trained(model)
    x = torch.randn(2, 3, 9, 9)
    expected = model(x)
    norm = model[1]
    converted = convert(model)
    assert converted[1] is norm
    assert torch.equal(converted(x), expected)
    in_training = copy.deepcopy(converted).train()
    assert torch.equal(in_training(x), model.train()(x))


def test_sync_conversion_still_reaches_the_batch_norms_beside_it():
    model = nn.Sequential(nn.BatchNorm2d(8), BatchChannelNorm(8, 4))
    converted = convert_sync_batchnorm(model)
    assert [type(m) for m in converted] == [nn.SyncBatchNorm, BatchChannelNorm]
    assert [type(m) for m in revert_sync_batchnorm(converted)] == [_BatchNormXd, BatchChannelNorm]


def test_fusing_ws_with_a_batch_norm_is_refused():
    module = trained(ConvModule(3, 8, 3, conv_cfg=WS, norm_cfg={'type': 'BN'}))
    with pytest.raises(RuntimeError) as error:
        fuse_conv_bn(module)
    assert str(error.value) == FUSING_REFUSED


@pytest.mark.parametrize('conv_cfg', [WS, None], ids=['ws', 'plain'])
def test_fusing_passes_bcn_by(conv_cfg):
    module = trained(ConvModule(3, 8, 3, conv_cfg=conv_cfg, norm_cfg=BCN))
    x = torch.randn(2, 3, 9, 9)
    expected = module(x)
    fused = fuse_conv_bn(module)
    assert torch.equal(fused(x), expected)
    assert isinstance(fused.norm, BatchChannelNorm)


def test_efficient_conv_bn_eval_is_refused_where_it_would_be_wrong():
    module = trained(ConvModule(3, 8, 3, conv_cfg=WS, norm_cfg={'type': 'BN'}))
    x = torch.randn(2, 3, 9, 9)
    expected = module(x)
    module.turn_on_efficient_conv_bn_eval()
    with pytest.raises(RuntimeError) as error:
        module(x)
    assert str(error.value) == EFFICIENT_EVAL_REFUSED
    del module.conv.forward
    module.turn_on_efficient_conv_bn_eval(False)
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize('conv_cfg', [WS, None], ids=['ws', 'plain'])
def test_efficient_conv_bn_eval_passes_bcn_by(conv_cfg):
    module = trained(ConvModule(3, 8, 3, conv_cfg=conv_cfg, norm_cfg=BCN))
    x = torch.randn(2, 3, 9, 9)
    expected = module(x)
    module.turn_on_efficient_conv_bn_eval()
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize('update_buffers', [True, False])
def test_moving_average(update_buffers):
    model = nn.Sequential(WSConv2d(3, 8, 3, bias=False), BatchChannelNorm(8, 4, rate=0.5))
    average = ExponentialMovingAverage(model, momentum=0.25, update_buffers=update_buffers)
    expected = None
    for step in range(3):
        model(torch.randn(2, 3, 9, 9) * 2 + 1)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        average.update_parameters(model)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        expected = state if step == 0 else {k: expected[k].lerp(v, 0.25) for k, v in state.items() if v.ndim}
    for key in ('0.weight', '1.weight', '1.bias', '1.group_weight', '1.group_bias'):
        torch.testing.assert_close(average.module.state_dict()[key], expected[key])
    for key in ('1.running_mean', '1.running_var'):
        wanted = expected[key] if update_buffers else state[key]
        torch.testing.assert_close(average.module.state_dict()[key], wanted)
    x = torch.randn(2, 3, 9, 9)
    assert average.eval()(x).isfinite().all()
    assert model[1].num_batches_tracked == 3


def test_conv_module_initialises_ws_and_bcn():
    module = ConvModule(3, 64, 3, conv_cfg=WS, norm_cfg=BCN)
    module.norm.weight.data.zero_()
    plain = nn.Conv2d(3, 64, 3, bias=False)
    torch.manual_seed(0)
    module.init_weights()
    torch.manual_seed(0)
    kaiming_init(plain, a=0, nonlinearity='relu')
    assert torch.equal(module.conv.weight, plain.weight)
    assert (module.norm.weight == 1).all()
    assert (module.norm.group_weight == 1).all()


def test_init_cfg_finds_ws_as_its_torch_class():
    class Net(BaseModule):
        def __init__(self):
            super().__init__({'type': 'Kaiming', 'layer': ['Conv2d', 'Conv3d']})
            self.flat = WSConv2d(3, 8, 3)
            self.deep = layers.WSConv3d(3, 8, 3)
            self.plain = nn.Conv1d(3, 8, 3)

    net = Net()
    before = copy.deepcopy(net.state_dict())
    net.init_weights()
    for name in ('flat', 'deep'):
        assert not torch.equal(net.state_dict()[f'{name}.weight'], before[f'{name}.weight'])
        assert (net.state_dict()[f'{name}.bias'] == 0).all()
    assert torch.equal(net.plain.weight, before['plain.weight'])
