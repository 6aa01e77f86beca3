"""The ways to make a training sample: the recipe's, and those that it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

CONFIGS = Path(__file__).parents[2] / 'configs'
CROPS = 'deeplabv3/deeplabv3_r50-d8_bcn-ws_1xb1-acc8-80k_cityscapes-512x1024.py'
CLIPS = 'resnet3d/i3d-r50_bcn-ws_1xb1-acc64-188k_kinetics400-32x2x1-224x224.py'
STOCK_CROPS = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(512, 1024), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
"""mmseg's pipeline for Cityscapes, from its `_base_/datasets/cityscapes.py`."""
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)

Make = Callable[[int], Any]
"""Index of a sample -> the sample."""


def crop_sides(root: Path) -> dict[str, Make]:
    """Return the ways to make crops of Cityscapes: mmseg's pipeline, the recipe's."""
    recipe = recipe_dataset(CROPS, root)
    stock = DATASETS.build(
        dict(
            type='CityscapesDataset',
            data_root=str(root),
            data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
            pipeline=STOCK_CROPS,
        )
    )
    return {"mmseg's transforms": stock.__getitem__, 'recipe': recipe.__getitem__}


def clip_sides(root: Path) -> dict[str, Make]:
    """Return the ways to make clips of Kinetics: frame by frame, the recipe's with decord, the recipe's."""
    recipe, with_decord = recipe_dataset(CLIPS, root), recipe_dataset(CLIPS, root, backend='decord')
    return {
        'frame by frame': lambda index: clip_by_frames(recipe, index),
        'recipe, decoded with decord': with_decord.__getitem__,
        'recipe': recipe.__getitem__,
    }


def recipe_dataset(name: str, root: Path, backend: str | None = None) -> Any:
    """Return the training dataset of a recipe, in another folder and with another decoder if one is given."""
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = f'{root}/'
    if backend:
        dataset.pipeline[0].backend = backend
    return DATASETS.build(dataset)


def clip_by_frames(dataset: Any, index: int) -> dict[str, Any]:
    """Return a clip made by plain code: each frame is sought, cropped, resized, flipped and normalised separately.

    Frames, rectangle and flip are drawn as by the recipe's transforms.
    """
    import decord

    decode, cut, flip = dataset.pipeline.transforms[:3]
    info = dataset.get_data_info(index)
    reader = decord.VideoReader(info['path'], num_threads=1)
    indices = decode.sampler(len(reader), **decode.arguments, random=True).flatten().tolist()
    frames, rectangle, mirrored = [], None, False
    for number in indices:
        reader.seek_accurate(number)
        frame = reader.next().asnumpy()
        if rectangle is None:
            rectangle, mirrored = cut.rectangle(*frame.shape[:2]), bool(torch.rand(()) < flip.prob)
        top, left, height, width = rectangle
        frame = cv2.resize(frame[top : top + height, left : left + width], (cut.size, cut.size))
        frame = cv2.flip(frame, 1) if mirrored else frame
        frames.append((frame.astype(np.float32) - MEAN) / STD)
    clip = torch.from_numpy(np.ascontiguousarray(np.stack(frames).transpose(3, 0, 1, 2)))
    return dict(inputs=clip[None], data_samples=info['label'], frame_indices=indices)
