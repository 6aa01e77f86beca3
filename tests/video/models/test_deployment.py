"""The deployed part of a recognizer: it normalises its input, folds with every 3D ResNet, and runs in the test."""

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import wsbcn_mm.video  # noqa: F401
from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.surgery.fold import fold
from wsbcn_mm.surgery.kinds import count_norms
from wsbcn_mm.video.models.deployment import Network, answer_with, channel_order

BACKBONES = {
    'R3D': dict(depth=18, with_pool1=True),
    'R(2+1)D': dict(depth=18, factorize=True, mid_channels_divisor=4),
    'I3D': dict(depth=50, conv1_kernel=(5, 7, 7), with_pool1=True, with_pool2=True, inflate_style='3x1x1'),
}


def recognizer(backbone):
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='Recognizer3d',
            data_preprocessor=dict(type='ClipDataPreprocessor'),
            backbone=dict(
                type='ResNet3d',
                base_channels=8,
                num_stages=2,
                conv_cfg=dict(type='WSConv3d'),
                norm_cfg=dict(type='BCN', num_groups=4),
                **BACKBONES[backbone],
            ),
            head=dict(type='ClipHead', num_classes=6, in_channels=64 if backbone == 'I3D' else 16),
        )
    ).eval()
    for module in model.modules():
        if isinstance(module, BatchChannelNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 2.0)
    return model


@pytest.mark.parametrize('backbone', BACKBONES)
def test_every_network_folds(backbone):
    network = Network(recognizer(backbone)).eval()
    folded, report = fold(network, 255 * torch.rand(2, 3, 4, 32, 32))
    assert set(count_norms(folded)) == {'GN'}
    assert (report.separate, report.left) == ({}, ())
    clips = 255 * torch.rand(1, 3, 5, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(folded(clips), network(clips), rtol=1e-5, atol=1e-5)


def test_a_network_takes_pixels_and_stands_for_the_model_in_its_test():
    model = recognizer('R3D')
    assert channel_order(model) == 'RGB'
    network = Network(model).eval()
    views = torch.randint(0, 256, (2, 3, 3, 4, 32, 32), dtype=torch.uint8)

    def scores():
        with torch.no_grad():
            return torch.stack([sample.pred_score for sample in model.test_step(dict(inputs=views))])

    expected = scores()
    with torch.no_grad():
        by_view = network(views.flatten(0, 1).float()).unflatten(0, (2, 3)).softmax(2)
    torch.testing.assert_close(by_view.mean(1), expected, rtol=1e-5, atol=1e-5)
    answer_with(lambda x: -network(x), model)
    assert not torch.allclose(scores(), expected, atol=1e-3)
    model.head.run = network
    torch.testing.assert_close(scores(), expected, rtol=1e-4, atol=1e-4)


def test_another_kind_of_model_is_refused():
    with pytest.raises(ValueError, match=r'^model is a Sequential: a Recognizer3d is expected$'):
        Network(nn.Sequential())
