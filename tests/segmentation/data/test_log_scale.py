import math

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, TRANSFORMS

from wsbcn_mm.segmentation import RandomLogScale


def sample(height: int = 100, width: int = 160) -> dict:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    label = rng.choice(np.array([0, 3, 255], np.uint8), (height, width))
    return dict(img=image, gt_seg_map=label, seg_fields=['gt_seg_map'], img_shape=(height, width))


def test_logarithm_of_the_factor_is_uniform() -> None:
    np.random.seed(0)
    transform = RandomLogScale((0.5, 2.0))
    logs = np.sort([math.log2(transform.random_scale()) for _ in range(4000)])
    assert -1 <= logs[0] < -0.99
    assert 0.99 < logs[-1] <= 1
    expected = np.linspace(-1, 1, logs.size)
    # Kolmogorov-Smirnov distance to a uniform distribution on [-1, 1], 1 % level
    assert np.abs(logs - expected).max() / 2 < 1.63 / math.sqrt(logs.size)


@pytest.mark.parametrize('filter_', [{}, dict(interpolation='lanczos', backend='pillow')], ids=['cv2', 'pillow'])
def test_image_and_label_take_the_same_rounded_size(filter_: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    transform = TRANSFORMS.build(dict(type='RandomLogScale', scale_range=(0.5, 2.0), **filter_))
    monkeypatch.setattr(transform, 'random_scale', lambda: 0.757)
    out = transform(sample())
    assert out['img'].shape == (76, 121, 3)
    assert out['gt_seg_map'].shape == (76, 121)
    assert out['img'].dtype == np.uint8
    assert set(np.unique(out['gt_seg_map'])) == {0, 3, 255}
    assert out['img_shape'] == (76, 121)


def test_factor_one_changes_nothing() -> None:
    before = sample()
    out = RandomLogScale((1.0, 1.0))(sample())
    np.testing.assert_array_equal(out['img'], before['img'])
    np.testing.assert_array_equal(out['gt_seg_map'], before['gt_seg_map'])


@pytest.mark.parametrize('scale_range', [(0, 2), (2, 0.5), (-1, 1)])
def test_bad_range_is_refused(scale_range: tuple) -> None:
    with pytest.raises(ValueError, match=r'scale_range=\(.*\): \(smallest, largest\) with 0 < smallest <= largest'):
        RandomLogScale(scale_range)


def test_authors_padding_is_behind_the_normalised_image() -> None:
    init_default_scope('mmseg')
    np.random.seed(0)
    pipeline = Compose(
        [
            dict(type='RandomLogScale', scale_range=(0.5, 0.5)),
            dict(type='RandomCrop', crop_size=(65, 65)),
            dict(type='PackSegInputs', meta_keys=('img_shape',)),
        ]
    )
    packed = pipeline(sample())
    assert packed['inputs'].shape == (3, 50, 65)
    preprocessor = MODELS.build(
        dict(type='SegDataPreProcessor', mean=[100.0] * 3, std=[50.0] * 3, size=(65, 65), pad_val=0, seg_pad_val=255)
    )
    batch = preprocessor(dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']]), training=True)
    label = batch['data_samples'][0].gt_sem_seg.data
    assert batch['inputs'].shape == (1, 3, 65, 65)
    assert torch.all(batch['inputs'][:, :, 50:] == 0)
    assert batch['inputs'][:, :, :50].abs().mean() > 0.1
    assert torch.all(label[:, 50:] == 255)
