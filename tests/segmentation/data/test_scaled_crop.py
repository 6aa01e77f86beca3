"""RandomScaledCrop against mmcv's and mmseg's own transforms, from the same random numbers."""

import re

import numpy as np
import pytest
from mmcv.transforms import RandomResize
from mmseg.datasets.transforms import RandomCrop
from mmseg.registry import TRANSFORMS

from tests.segmentation.pictures import textured
from wsbcn_mm.segmentation import RandomScaledCrop

SIZE = (103, 208)
SCALE = (208, 103)


def sample(labels: np.ndarray) -> dict:
    return dict(
        img_path='street.png',
        img=textured(*SIZE),
        img_shape=SIZE,
        ori_shape=SIZE,
        seg_map_path='labels.png',
        gt_seg_map=labels,
        seg_fields=['gt_seg_map'],
    )


def skewed_labels() -> np.ndarray:
    """One class on most of the image, ignored pixels and small objects: windows are often redrawn."""
    labels = np.zeros(SIZE, np.uint8)
    labels[:40, :50] = 255
    labels[60:, 150:] = np.random.default_rng(0).integers(1, 19, (43, 58), dtype=np.uint8)
    return labels


@pytest.mark.parametrize('crop_size', [(48, 96), (90, 90)])
@pytest.mark.parametrize('cat_max_ratio', [1.0, 0.75])
def test_equals_resizing_and_cropping(crop_size: tuple[int, int], cat_max_ratio: float) -> None:
    stock = [
        RandomResize(scale=SCALE, ratio_range=(0.5, 2.0), keep_ratio=True),
        RandomCrop(crop_size=crop_size, cat_max_ratio=cat_max_ratio),
    ]
    ours = TRANSFORMS.build(
        dict(
            type='RandomScaledCrop',
            scale=SCALE,
            ratio_range=(0.5, 2.0),
            crop_size=crop_size,
            cat_max_ratio=cat_max_ratio,
        )
    )
    labels = skewed_labels()
    shapes = set()
    for seed in range(60):
        np.random.seed(seed)
        expected = sample(labels)
        for transform in stock:
            expected = transform(expected)
        state = np.random.get_state()[1].tolist()
        np.random.seed(seed)
        found = ours(sample(labels))
        assert np.random.get_state()[1].tolist() == state, 'other random numbers were drawn'
        assert set(found) == set(expected)
        assert np.abs(found['img'].astype(int) - expected['img']).max() <= 1
        np.testing.assert_array_equal(found['gt_seg_map'], expected['gt_seg_map'])
        for key in set(found) - {'img', 'gt_seg_map'}:
            assert found[key] == expected[key], key
        shapes.add(found['img_shape'])
    assert crop_size in shapes
    assert (len(shapes) > 1) == (crop_size == (90, 90)), 'a resized image below the crop size stays as it is'


def test_a_sample_that_does_not_fit_is_refused() -> None:
    transform = RandomScaledCrop(SCALE, (1, 1), (64, 64))
    text = 'street.png has no labels: RandomScaledCrop chooses the window on them'
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        transform(dict(img_path='street.png', img=textured(*SIZE)))
    text = 'street.png is 103 x 208 (height x width), its label file labels.png 103 x 207'
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        transform(sample(np.zeros((103, 207), np.uint8)))


@pytest.mark.parametrize(
    ('arguments', 'text'),
    [
        (((0, 5), (1, 1), (8, 8)), 'scale=(0, 5), crop_size=(8, 8): two positive numbers of pixels each are expected'),
        (((5, 5), (2, 1), (8, 8)), 'ratio_range=(2, 1): 0 < smallest <= largest is expected'),
        (((5, 5), (1, 1), (8, 8), 1.5), 'cat_max_ratio=1.5: a share in (0, 1] is expected'),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: tuple, text: str) -> None:
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        RandomScaledCrop(*arguments)
