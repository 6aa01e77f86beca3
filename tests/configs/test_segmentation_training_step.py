"""One image through whole recipe models: loss and gradients of every layer are finite at one image per device."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

import wsbcn_mm.segmentation  # noqa: F401
from wsbcn_mm.engine.recipe.norms import switch_norm

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.mark.parametrize(
    ('recipe', 'norm'),
    [
        ('deeplabv3/deeplabv3_r50-d8_syncbn_4xb2-acc1-80k_cityscapes-512x1024', 'bn'),
        ('deeplabv3plus/deeplabv3plus_r50-d16_gn-ws_1xb1-acc16-33k_voc12aug-513x513', None),
        pytest.param(
            'deeplabv3plus/deeplabv3plus_r50-d8_bcn-ws_1xb1-acc8-80k_cityscapes-512x1024', None, marks=pytest.mark.slow
        ),
    ],
)
def test_one_image_trains_the_whole_model(recipe: str, norm: str | None) -> None:
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / f'{recipe}.py')
    if norm:
        switch_norm(cfg, norm, CONFIGS / '_base_' / 'norms')
        cfg.model.decode_head.image_pool_norm = False  # BN of one image is undefined there
    cfg = cfg.model
    cfg.backbone.init_cfg = None
    cfg.data_preprocessor.size = (65, 65)
    init_default_scope('mmseg')
    model = MODELS.build(cfg)
    model.init_weights()
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, cfg.decode_head.num_classes, (1, 50, 65))))
    batch = dict(inputs=[torch.randint(0, 256, (3, 50, 65), dtype=torch.uint8)], data_samples=[sample])
    batch = model.data_preprocessor(batch, training=True)
    losses = model.train()(**batch, mode='loss')
    assert set(losses) >= ({'decode.loss_ce', 'aux.loss_ce'} if 'auxiliary_head' in cfg else {'decode.loss_ce'})
    sum(loss for name, loss in losses.items() if 'loss' in name).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
