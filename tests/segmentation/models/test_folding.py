"""Folded segmentors run with mmseg only: config, weights and, for BCN, one more file."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from torch import nn

import wsbcn_mm.segmentation  # noqa: F401
from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.segmentation.models.deployment import Network
from wsbcn_mm.segmentation.models.folding import fold_for_mmseg, group_norm_of
from wsbcn_mm.surgery.kinds import count_convs, count_norms

HEADS = {
    'DeepLabV3Head': dict(bottleneck_kernel_size=3),
    'DeepLabV3PlusHead': dict(c1_in_channels=8, c1_channels=8),
    'ASPPHead': {},
}
NORMS = {
    'bcn-ws': (dict(type='WSConv2d', variant='bcn'), dict(type='BCN', num_groups=2, rate=0.1, warmup=True, eps=1e-3)),
    'gn-ws': (dict(type='WSConv2d'), dict(type='GN', num_groups=2)),
    'bn-ws': (dict(type='WSConv2d'), dict(type='BN')),
    'bn': (None, dict(type='BN')),
}
META = dict(dataset_meta=dict(classes=tuple('abcde'), palette=[[i, i, i] for i in range(5)]))
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadStrictLabels'), dict(type='PackSegInputs')]


def recipe(head, norm, **decode_head):
    conv_cfg, norm_cfg = NORMS[norm]
    common = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', mean=[120.0, 110.0, 100.0], std=[50.0, 60.0, 70.0], bgr_to_rgb=True
                ),
                backbone=dict(
                    type='ResNet',
                    depth=18,
                    stem_channels=8,
                    base_channels=8,
                    strides=(1, 2, 1, 1),
                    dilations=(1, 1, 2, 4),
                    **common,
                ),
                decode_head=dict(
                    type=head,
                    in_channels=64,
                    in_index=3,
                    channels=8,
                    dilations=(1, 2),
                    num_classes=5,
                    align_corners=False,
                    **common,
                    **HEADS[head] | decode_head,
                ),
                auxiliary_head=dict(
                    type='FCNHead', in_channels=32, in_index=2, channels=8, num_classes=5, align_corners=False, **common
                ),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            ),
            test_dataloader=dict(dataset=dict(pipeline=PIPELINE)),
        )
    )


def trained(cfg):
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
    for module in model.modules():
        if isinstance(module, (BatchChannelNorm, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
    model.cfg, model.dataset_meta = cfg, META['dataset_meta']
    cfg.test_pipeline = PIPELINE
    return model


def pixels():
    return 255 * torch.rand(1, 3, 33, 48)


def image():
    return np.random.default_rng(0).integers(0, 256, (41, 52, 3), dtype=np.uint8)


def logits(model):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return inference_model(model, image()).seg_logits.data


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('norm', NORMS)
def test_the_files_answer_as_the_model_does(head, norm, tmp_path, monkeypatch):
    cfg = recipe(head, norm)
    model = trained(cfg)
    report = fold_for_mmseg(cfg, model, META, pixels(), tmp_path)
    assert len(report.baked) == count_convs(Network(model))['WS'] >= (0 if norm == 'bn' else 24)
    files = {'folded.py', 'folded.pth'} | ({'folded_segmentor.py'} if norm == 'bcn-ws' else set())
    assert {path.name for path in tmp_path.iterdir()} == files
    written = (tmp_path / 'folded.py').read_text()
    assert 'wsbcn' not in written
    assert 'LoadStrictLabels' not in written

    monkeypatch.syspath_prepend(tmp_path)
    stock = init_model(tmp_path / 'folded.py', str(tmp_path / 'folded.pth'), device='cpu')
    assert set(count_convs(stock)) == {'plain'}
    assert set(count_norms(stock)) == {'GN' if norm in ('bcn-ws', 'gn-ws') else 'BN'}
    assert stock.dataset_meta['classes'] == tuple('abcde')
    torch.testing.assert_close(logits(stock), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_they_run_where_this_package_is_not_installed(tmp_path):
    cfg = recipe('DeepLabV3PlusHead', 'bcn-ws')
    model = trained(cfg)
    fold_for_mmseg(cfg, model, META, pixels(), tmp_path)
    np.save(tmp_path / 'image.npy', image())
    program = """
import sys
sys.modules['wsbcn_mm'] = None
import numpy, torch
from mmseg.apis import inference_model, init_model
model = init_model('folded.py', 'folded.pth', device='cpu')
torch.save(inference_model(model, numpy.load('image.npy')).seg_logits.data, 'logits.pth')
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(torch.load(tmp_path / 'logits.pth'), logits(model), rtol=1e-5, atol=1e-5)


def test_what_mmseg_cannot_express_is_refused(tmp_path):
    for arguments, name in (
        (dict(bottleneck_kernel_size=1), 'bottleneck_kernel_size other than 3'),
        (dict(image_pool_norm=False), 'image_pool_norm other than True'),
    ):
        cfg = recipe('DeepLabV3Head', 'gn-ws', **arguments)
        with pytest.raises(ValueError, match=rf'^mmseg has no ASPPHead with a {name}: use tools/export\.py$'):
            fold_for_mmseg(cfg, trained(cfg), META, pixels(), tmp_path / 'folded')
    with pytest.raises(ValueError, match=r"^norm_cfg with channels_per_group has no counterpart in mmseg's GN: use "):
        group_norm_of(dict(type='BCN', channels_per_group=8))
    assert not (tmp_path / 'folded').exists()


def test_only_what_has_one_counterpart_in_the_config_is_left():
    assert group_norm_of(dict(type='BCN', num_groups=4, rate=0.1, statistics='sync')) == dict(
        type='GN', num_groups=4, eps=1e-5
    )
    assert group_norm_of(dict(type='BCN')) == dict(type='GN', num_groups=32, eps=1e-5)
