"""The deployed part of a segmentor: it normalises its input, folds with every norm and head, and runs in the test."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

import wsbcn_mm.segmentation  # noqa: F401
from wsbcn_mm.engine.export import load_exported
from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.segmentation.models.deployment import AXES, Network, answer_with, channel_order
from wsbcn_mm.surgery.export import export
from wsbcn_mm.surgery.fold import fold
from wsbcn_mm.surgery.kinds import count_convs, count_norms

HEADS = {
    'DeepLabV3Head': dict(in_index=3, dilations=(1, 2, 3)),
    'DeepLabV3PlusHead': dict(in_index=3, dilations=(1, 2, 3), c1_in_channels=8, c1_channels=8),
}
NORMS = {
    'bcn-ws': (dict(type='WSConv2d'), dict(type='BCN', num_groups=4)),
    'gn-ws': (dict(type='WSConv2d'), dict(type='GN', num_groups=4)),
    'bn-ws': (dict(type='WSConv2d'), dict(type='BN')),
    'bcn': (dict(type='Conv2d'), dict(type='BCN', num_groups=4, affine='channel')),
}


def segmentor(head='DeepLabV3Head', norm='bcn-ws', preprocessor=None):
    """A DeepLab of a few channels whose running statistics are not the initial ones."""
    torch.manual_seed(0)
    conv_cfg, norm_cfg = NORMS[norm]
    common = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
    cfg = ConfigDict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            **(preprocessor or dict(mean=[120.0, 110.0, 100.0], std=[50.0, 60.0, 70.0], bgr_to_rgb=True)),
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
            channels=8,
            num_classes=5,
            align_corners=False,
            **HEADS[head],
            **common,
        ),
        auxiliary_head=dict(
            type='FCNHead', in_channels=32, in_index=2, channels=8, num_classes=5, align_corners=False, **common
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg).eval()
    for module in model.modules():
        if isinstance(module, (BatchChannelNorm, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
    return model


def pixels(*shape):
    return 255 * torch.rand(shape)


def segment(model, images):
    """Logits of the model's own test on images as its pipeline loads them."""
    samples = [SegDataSample(metainfo=dict(img_shape=i.shape[1:], ori_shape=i.shape[1:])) for i in images]
    for sample, image in zip(samples, images, strict=True):
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, *image.shape[1:], dtype=torch.long))
    found = model.test_step(dict(inputs=list(images), data_samples=samples))
    return torch.stack([sample.seg_logits.data for sample in found])


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('norm', NORMS)
def test_networks_of_every_norm_fold(head, norm):
    network = Network(segmentor(head, norm)).eval()
    folded, report = fold(network, pixels(2, 3, 32, 32))
    assert count_convs(folded) == {'plain': sum(count_convs(network).values())}
    assert set(count_norms(folded)) == {'BN' if norm == 'bn-ws' else 'GN'}
    assert not report.separate
    assert not report.left
    assert bool(report.absorbed) == norm.startswith('bcn')
    x = pixels(1, 3, 33, 47)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('to', ['onnx', 'torch_export'])
def test_deeplab_v3_plus_keeps_its_axes_free(to, tmp_path):
    network = Network(segmentor('DeepLabV3PlusHead')).eval()
    example = pixels(2, 3, 32, 32)
    folded, _ = fold(network, example)
    path = tmp_path / {'onnx': 'a.onnx', 'torch_export': 'a.pt2'}[to]
    export(folded, example, path, to=to, axes=AXES)
    run = load_exported(path)
    for shape in [(1, 3, 32, 32), (1, 3, 33, 47), (3, 3, 50, 31)]:
        x = pixels(*shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('preprocessor', 'order'),
    [
        (dict(mean=[120.0, 110.0, 100.0], std=[50.0, 60.0, 70.0], bgr_to_rgb=True), 'RGB'),
        (dict(mean=[103.0, 116.0, 123.0], std=[1.0, 1.0, 1.0]), 'BGR'),
        (dict(mean=None), 'BGR'),
    ],
)
def test_a_network_takes_pixels_and_stands_for_the_model_in_its_test(preprocessor, order):
    model = segmentor(preprocessor=preprocessor)
    assert channel_order(model) == order
    network = Network(model).eval()
    loaded = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    taken = loaded.flip(1) if order == 'RGB' else loaded
    expected = segment(model, loaded)
    with torch.no_grad():
        torch.testing.assert_close(network(taken.float()), expected, rtol=1e-5, atol=1e-5)
    answer_with(lambda x: 2 * network(x), model)
    with torch.no_grad():
        torch.testing.assert_close(segment(model, loaded), 2 * expected, rtol=1e-4, atol=1e-4)


def test_sliding_windows_go_through_the_exported_network():
    model = segmentor()
    model.test_cfg.update(mode='slide', crop_size=(24, 24), stride=(16, 16))
    images = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    expected, network, shapes = segment(model, images), Network(model).eval(), []

    def run(x):
        shapes.append(tuple(x.shape))
        return network(x)

    answer_with(run, model)
    with torch.no_grad():
        torch.testing.assert_close(segment(model, images), expected, rtol=1e-4, atol=1e-4)
    assert shapes == [(1, 3, 24, 24)] * 6


def test_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match=r'^model is a Sequential: an EncoderDecoder without a cascade is expected$'):
        Network(nn.Sequential())
