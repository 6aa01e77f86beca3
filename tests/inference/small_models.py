"""Checkpoints of small models with random weights, as tools/train.py writes them."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsbcn_mm.engine.recipe.model import build_model
from wsbcn_mm.surgery.fingerprint import fingerprint


def segmentation_config(num_classes: int = 3, channels: int = 3, **head: Any) -> Config:
    """Return a recipe of a network that looks no further than 32 pixels: a stem and a stage with BatchNorm."""
    colours = dict(bgr_to_rgb=True) if channels == 3 else {}
    loading = dict(type='LoadImageFromFile') | ({} if channels == 3 else dict(color_type='grayscale'))
    return Config(
        dict(
            default_scope='mmseg',
            custom_imports=dict(imports=['wsbcn_mm.segmentation'], allow_failed_imports=False),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', mean=[120.0] * channels, std=[60.0] * channels, size=(64, 64), **colours
                ),
                backbone=dict(
                    type='ResNet',
                    depth=18,
                    in_channels=channels,
                    num_stages=1,
                    strides=(1,),
                    dilations=(1,),
                    out_indices=(0,),
                    base_channels=16,
                    stem_channels=16,
                    norm_cfg=dict(type='BN'),
                ),
                decode_head=dict(
                    type='FCNHead',
                    in_channels=16,
                    channels=16,
                    num_convs=1,
                    kernel_size=1,
                    concat_input=False,
                    num_classes=num_classes,
                    norm_cfg=dict(type='BN'),
                    align_corners=False,
                    **head,
                ),
                train_cfg=dict(),
                test_cfg=dict(mode='whole'),
            ),
            test_dataloader=dict(
                dataset=dict(pipeline=[loading, dict(type='LoadAnnotations'), dict(type='PackSegInputs')])
            ),
        )
    )


def video_config(num_classes: int = 4, sampler: dict[str, Any] | None = None, **decoding: Any) -> Config:
    """Return a recipe of the tiny R3D with BatchNorm."""
    return Config(
        dict(
            default_scope='mmengine',
            custom_imports=dict(imports=['wsbcn_mm.video'], allow_failed_imports=False),
            model=dict(
                type='Recognizer3d',
                data_preprocessor=dict(type='ClipDataPreprocessor'),
                backbone=dict(
                    type='ResNet3d',
                    depth=18,
                    base_channels=8,
                    num_stages=2,
                    spatial_strides=(1, 2),
                    temporal_strides=(1, 2),
                    dilations=(1, 1),
                    inflate=(1, 1),
                    with_pool1=True,
                    norm_cfg=dict(type='BN3d'),
                ),
                head=dict(type='ClipHead', num_classes=num_classes, in_channels=16, dropout_ratio=0.0, init_std=1.0),
            ),
            test_dataloader=dict(
                dataset=dict(
                    pipeline=[
                        dict(
                            type='DecodeClip',
                            sampler=sampler or dict(type='segments', num_segments=4),
                            random=False,
                            deadline=None,
                            **decoding,
                        ),
                        dict(type='ResizeClip', size=[32, 40]),
                        dict(type='PackClipInputs'),
                    ]
                )
            ),
        )
    )


def save(cfg: Config, file: Path, classes: tuple[str, ...] | None = None, palette: Any = None, **meta: Any) -> Path:
    """Write a checkpoint of a recipe with random weights and statistics."""
    torch.manual_seed(0)
    model = build_model(cfg, 'cpu')
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    if cfg.default_scope == 'mmseg':
        # Every class somewhere: logits of about the same mean on noise.
        last = model.decode_head.conv_seg
        nn.init.normal_(last.weight)
        with torch.no_grad():
            last.bias -= model.eval()(torch.randn(1, cfg.model.backbone.in_channels, 64, 64)).mean((0, 2, 3))
    about: dict[str, Any] = dict(cfg=cfg.pretty_text, fingerprint=fingerprint(model))
    if classes:
        about['dataset_meta'] = dict(classes=classes, palette=palette)
    torch.save({'state_dict': model.state_dict(), 'meta': about | meta}, file)
    return file
