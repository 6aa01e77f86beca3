"""16 bits: what `--amp` makes of a recipe, and steps of bfloat16 on a CPU."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn import functional as F

from wsbcn_mm.engine.recipe.precision import Bf16OptimWrapper, give_fan_in_gain, use_amp
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.surgery.fingerprint import compare, fingerprint

CONFIGS = Path(__file__).parents[3] / 'configs'


def wrapper(**keys):
    return Config(dict(model=dict(), optim_wrapper=keys))


@pytest.fixture
def gpu(monkeypatch):
    """A GPU by name alone."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda **_: False)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Tesla T4')


@pytest.fixture
def cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


@pytest.mark.usefixtures('cpu')
@pytest.mark.parametrize('precision', [None, 'bf16'])
def test_a_cpu_computes_in_bfloat16(precision):
    cfg = wrapper(type='OptimWrapper', accumulative_counts=4)
    assert use_amp(cfg, precision) == ['amp: forward passes in bfloat16, losses not scaled']
    assert cfg.optim_wrapper == dict(type='Bf16OptimWrapper', accumulative_counts=4)


def test_bfloat16_in_place_of_a_scaled_float16(cpu):
    cfg = wrapper(type='AmpOptimWrapper', dtype='float16', loss_scale=512.0)
    use_amp(cfg, 'bf16')
    assert cfg.optim_wrapper == dict(type='Bf16OptimWrapper')


@pytest.mark.usefixtures('gpu')
def test_a_gpu_without_bfloat16_gets_float16_and_scaled_losses():
    cfg = wrapper(accumulative_counts=4)
    assert use_amp(cfg) == ['amp: forward passes in float16, loss scale dynamic']
    amp = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
    assert cfg.optim_wrapper == dict(accumulative_counts=4, **amp)
    cfg = wrapper(type='AmpOptimWrapper', loss_scale=512.0)
    assert use_amp(cfg) == ['amp: the recipe already sets AmpOptimWrapper']
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale=512.0)
    assert use_amp(cfg, 'fp16') == ['amp: forward passes in float16, loss scale 512.0']


def test_what_cannot_be_is_refused_in_a_line(cpu, monkeypatch):
    def refused(precision, text, **keys):
        with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
            use_amp(wrapper(**keys), precision)

    refused('fp16', '--amp fp16: a GPU is needed, and none was found; --amp bf16 also runs on CPUs')
    refused('fp8', "--amp 'fp8': bf16 or fp16 is expected")
    apex = dict(type='ApexOptimWrapper')
    refused('bf16', "--amp with optim_wrapper.type='ApexOptimWrapper': 'OptimWrapper' is expected", **apex)


@pytest.mark.usefixtures('gpu')
def test_bfloat16_is_refused_where_it_would_be_emulated():
    with pytest.raises(ValueError, match=r'^--amp bf16: Tesla T4 does not support it; use --amp fp16$'):
        use_amp(wrapper(), 'bf16')


@pytest.mark.usefixtures('gpu')
def test_float16_gives_the_gain_to_what_starts_from_scratch():
    """Cityscapes recipes start their backbone from a file, whose filters were trained without it."""
    cfg = Config.fromfile(CONFIGS / 'deeplabv3' / 'deeplabv3_r50-d8_gn-ws_1xb1-acc8-80k_cityscapes-512x1024.py')
    said = use_amp(cfg, 'fp16')
    assert said[1:] == [
        "amp: gain='fan_in' for the WS convolutions of model.decode_head, model.auxiliary_head",
        'amp: no gain for those of model.backbone, which start from a file trained without it',
    ]
    assert cfg.model.decode_head.conv_cfg == dict(type='WSConv2d', gain='fan_in')
    assert 'gain' not in cfg.model.backbone.conv_cfg
    assert use_amp(cfg, 'fp16') == said


def test_a_whole_model_from_a_file_keeps_its_gain_and_a_resumed_one_gets_it_again():
    tiny = CONFIGS / 'tiny' / 'deeplabv3_r18-tiny_bcn-ws_1xb1-acc1-2.4k_digits-64x64.py'
    init_default_scope('mmseg')
    models = {}
    for name, keys in dict(new={}, file=dict(load_from='a.pth'), resumed=dict(resume=True, load_from='a.pth')).items():
        cfg = Config.fromfile(tiny)
        cfg.merge_from_dict(keys)
        give_fan_in_gain(cfg)
        models[name] = fingerprint(MODELS.build(cfg.model))
    assert compare(models['resumed'], models['new']).verdict == 'match'
    (line,) = compare(models['file'], models['new']).differences
    assert line.startswith('24 x gain none in the checkpoint, fan_in in the model')


def test_a_step_in_bfloat16_moves_weights_of_float32():
    torch.manual_seed(0)
    model = nn.Sequential(WSConv2d(3, 8, 3), BatchChannelNorm(8, 2), nn.ReLU(), nn.Conv2d(8, 2, 1))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = Bf16OptimWrapper(optimizer=optimizer, accumulative_counts=2)
    wrapped.initialize_count_status(model, 0, 2)
    for _ in range(2):
        with wrapped.optim_context(model):
            out = model(torch.randn(1, 3, 8, 8))
        assert out.dtype == torch.bfloat16
        wrapped.update_params(F.cross_entropy(out.float(), torch.ones(1, 6, 6, dtype=torch.int64)))
    assert model(torch.randn(1, 3, 8, 8)).dtype == torch.float32
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(moved) >= len(moved) - 1  # a bias before a norm need not move
    assert model[1].running_mean.dtype == torch.float32


def test_filters_of_two_frames_get_finite_gradients_on_a_cpu():
    """Memory that was NaN shows what oneDNN leaves unwritten."""
    torch.manual_seed(0)
    model = nn.Conv3d(64, 64, 3, padding=1, bias=False)
    wrapped = Bf16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    wrapped.initialize_count_status(model, 0, 10)
    x = torch.randn(1, 64, 2, 5, 5)
    model(x).square().mean().backward()
    expected = model.weight.grad.clone()
    for _ in range(10):
        wrapped.zero_grad()
        for size in (10**5, 10**6):
            torch.full((size,), float('nan'))
        with wrapped.optim_context(model):
            loss = model(x).float().square().mean()
        wrapped.backward(loss)
        assert torch.backends.mkldnn.enabled
        torch.testing.assert_close(model.weight.grad, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
