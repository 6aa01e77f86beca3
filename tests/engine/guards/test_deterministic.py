"""The hook of deterministic runs: every bilinear interpolation of a real model goes backward by matrix products."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import wsbcn_mm.segmentation  # noqa: F401  registers the modules
from wsbcn_mm.engine.guards.deterministic import (
    DeterministicHook,
    DeterministicInterpolation,
    interpolate_deterministically,
)
from wsbcn_mm.ops.bilinear_upsample import bilinear_upsample

TINY = Path(__file__).parents[3] / 'configs' / 'tiny' / 'deeplabv3_r18-tiny_gn_1xb1-acc1-2.4k_digits-64x64.py'


def operations(loss):
    """Names of all operations that a loss goes back through."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


def loss_of(model):
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 4, (1, 64, 64))))
    sample.set_metainfo(dict(img_shape=(64, 64)))
    data = dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)], data_samples=[sample])
    torch.manual_seed(0)
    return model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))[0]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_a_models_interpolations_are_exchanged_and_its_gradients_stay():
    cfg = Config.fromfile(TINY)
    init_default_scope('mmseg')
    auxiliary = dict(type='FCNHead', in_channels=64, in_index=2, channels=32, num_convs=1, num_classes=4)
    norms = dict(norm_cfg=dict(type='GN', num_groups=8), concat_input=False, align_corners=False)
    cfg.model.auxiliary_head = auxiliary | norms
    model = MODELS.build(cfg.model).train()
    torch.manual_seed(1)
    loss = loss_of(model)
    plain = operations(loss)
    expected = gradients(model, loss)
    interpolate_deterministically(model)
    torch.manual_seed(1)
    loss = loss_of(model)
    exchanged = operations(loss)
    assert 'UpsampleBilinear2DBackward0' in plain
    assert '_InterpolateBackward' in exchanged
    assert 'UpsampleBilinear2DBackward0' not in exchanged
    for name, grad in gradients(model, loss).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    outside = F.interpolate(x, size=(8, 8), mode='bilinear')
    assert operations(outside.sum()) >= {'UpsampleBilinear2DBackward0'}


def test_what_is_not_bilinear_to_a_size_is_left_alone():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    for options in (dict(size=8), dict(scale_factor=2, mode='bilinear'), dict(size=3, mode='bicubic')):
        with DeterministicInterpolation():
            inside = F.interpolate(x, **options)
        outside = F.interpolate(x, **options)
        assert torch.equal(inside, outside)
        assert operations(inside) == operations(outside)
    with DeterministicInterpolation():
        assert torch.equal(F.interpolate(x, size=6, mode='bilinear'), bilinear_upsample(x, (6, 6)))


def test_an_error_in_the_forward_leaves_nothing_behind():
    model = torch.nn.Linear(2, 2)
    interpolate_deterministically(model)
    with pytest.raises(RuntimeError, match='mat1 and mat2'):
        model(torch.zeros(1, 3))
    assert torch.overrides._len_torch_function_stack() == 0


@pytest.fixture
def _torch_deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Run:
    """What of a Runner the hook looks at."""

    def __init__(self):
        self.model, self.said = torch.nn.Linear(2, 2), []
        self.logger = type('Logger', (), {'info': lambda _, text: self.said.append(text)})()


@pytest.mark.usefixtures('_torch_deterministic')
def test_the_hook_asks_cublas_too_and_only_where_it_was_asked(monkeypatch):
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG', raising=False)
    hook, run = DeterministicHook(), Run()
    hook.before_run(run)
    hook.before_run(run)
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
    assert run.said == ['deterministic: bilinear interpolation goes backward by matrix products']
    torch.use_deterministic_algorithms(False)
    other = Run()
    DeterministicHook().before_run(other)
    assert not other.said
    assert not other.model._forward_pre_hooks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.usefixtures('_torch_deterministic')
def test_two_steps_on_a_gpu_are_the_same_to_the_last_bit(monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    cfg = Config.fromfile(TINY)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).cuda().train()
    interpolate_deterministically(model)
    first, second = gradients(model, loss_of(model)), gradients(model, loss_of(model))
    assert all(torch.equal(first[name], second[name]) for name in first)
