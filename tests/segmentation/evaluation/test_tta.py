"""Test-time augmentation and sliding windows against means computed here."""

import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS, init_default_scope
from mmseg.models import SegTTAModel
from mmseg.registry import DATASETS, MODELS
from PIL import Image
from torch.nn.functional import interpolate

from wsbcn_mm.diagnostics.allocations import Allocations
from wsbcn_mm.segmentation.evaluation.tta import (
    SCALES,
    MeanProbability,
    tta_pipeline,
    use_sliding_window,
    use_tta,
    window_side,
)

CONFIGS = Path(__file__).parents[3] / 'configs'
RECIPE = CONFIGS / 'tiny' / 'deeplabv3_r18-tiny_gn-ws_1xb1-acc1-2.4k_digits-64x64.py'
HEIGHT, WIDTH = 40, 56


def recipe(data: Path) -> Config:
    cfg = Config.fromfile(RECIPE)
    cfg.test_dataloader.dataset.data_root = f'{data}/'
    return cfg


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Two images of coloured blocks with labels, which differ from their mirror images."""
    root = tmp_path_factory.mktemp('digits')
    rng = np.random.default_rng(0)
    for folder, suffix, shape in (
        ('leftImg8bit', 'leftImg8bit', (5, 7, 3)),
        ('gtFine', 'gtFine_labelTrainIds', (5, 7)),
    ):
        (root / folder / 'val').mkdir(parents=True)
        for name in 'ab':
            blocks = rng.integers(0, 255 if len(shape) == 3 else 4, shape, dtype=np.uint8)
            Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(root / folder / 'val' / f'{name}_{suffix}.png')
    return root


@pytest.fixture(scope='module')
def model(data) -> torch.nn.Module:
    return undecided(recipe(data))


@torch.no_grad()
def undecided(cfg: Config) -> torch.nn.Module:
    """A random segmentor that predicts every class somewhere in the first image."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    model.decode_head.conv_seg.weight.normal_(0, 3)
    x = model.data_preprocessor(batch_of(recipe(Path(cfg.test_dataloader.dataset.data_root))))['inputs']
    model.decode_head.conv_seg.bias -= model(x).mean((0, 2, 3))
    return model


def batch_of(cfg: Config) -> dict:
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    return pseudo_collate([dataset[0]])


def probabilities(model: torch.nn.Module, image: np.ndarray, scale: float, mirrored: bool) -> torch.Tensor:
    """(K, H, W) in the size of `image` (H, W, 3), RGB."""
    resized = cv2.resize(image, (int(WIDTH * scale + 0.5), int(HEIGHT * scale + 0.5)), interpolation=cv2.INTER_LINEAR)
    mean, std = (torch.tensor(values) for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    x = ((torch.from_numpy(resized) - mean) / std).permute(2, 0, 1)[None]
    logits = model.encode_decode(x.flip(3) if mirrored else x, [dict(img_shape=x.shape[2:])])
    logits = logits.flip(3) if mirrored else logits
    return interpolate(logits, (HEIGHT, WIDTH), mode='bilinear', align_corners=False)[0].softmax(0)


def same_classes(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether `found` (1, H, W) are the classes of (K, H, W) scores, wherever rounding cannot flip the class."""
    best = expected.topk(2, dim=0).values
    decided = best[0] - best[1] > 1e-5
    assert decided.float().mean() > 0.99
    return torch.equal(found[0][decided], expected.argmax(0)[decided])


@torch.no_grad()
def test_augmentation_is_the_mean_of_probabilities_over_scales_and_mirror_images(data, model) -> None:
    plain = model.test_step(batch_of(recipe(data)))[0].pred_sem_seg.data
    cfg = recipe(data)
    use_tta(cfg)
    batch = batch_of(cfg)
    assert len(batch['inputs']) == 12
    (sample,) = MeanProbability(model).test_step(batch)
    image = np.asarray(Image.open(data / 'leftImg8bit/val/a_leftImg8bit.png'))
    expected = sum(probabilities(model, image, scale, flip) for scale in SCALES for flip in (False, True)) / 12
    assert same_classes(sample.pred_sem_seg.data, expected)
    assert len(sample.pred_sem_seg.data.unique()) > 2
    assert (sample.pred_sem_seg.data != plain).float().mean() > 0.02

    truth = np.asarray(Image.open(data / 'gtFine/val/a_gtFine_labelTrainIds.png'))
    assert np.array_equal(sample.gt_sem_seg.data[0], truth)
    assert Path(sample.img_path).name == 'a_leftImg8bit.png'
    assert 'seg_logits' not in sample

    (theirs,) = SegTTAModel(model).test_step(batch_of(cfg))
    assert same_classes(theirs.pred_sem_seg.data, expected)


@torch.no_grad()
def test_memory_does_not_grow_with_the_number_of_copies(data, model) -> None:
    peaks = {}
    for scales in ((1.0,), (1.0,) * 12):
        cfg = recipe(data)
        use_tta(cfg, scales, flip=False)
        batch = batch_of(cfg)
        with Allocations() as memory:
            MeanProbability(model).test_step(batch)
        peaks[len(scales)] = memory.peak
    image_of_logits = 4 * 4 * HEIGHT * WIDTH
    assert peaks[12] <= peaks[1] + 3 * image_of_logits


@torch.no_grad()
def test_scores_that_are_not_finite_in_one_size_are_an_error(data, model, monkeypatch) -> None:
    cfg = recipe(data)
    use_tta(cfg, (1.0, 0.5), flip=False)
    forward = model.encode_decode

    def overflowing(inputs, metas):
        return forward(inputs, metas) * (torch.nan if inputs.shape[3] < WIDTH else 1)

    monkeypatch.setattr(model, 'encode_decode', overflowing)
    with pytest.raises(ValueError, match=r'/val/a_leftImg8bit.png are not all finite'):
        MeanProbability(model).test_step(batch_of(cfg))


@torch.no_grad()
def test_the_wrapper_of_distributed_runs_is_augmented_likewise(data, model) -> None:
    cfg = recipe(data)
    use_tta(cfg, [1.0])
    (hook,) = [hook for hook in cfg.custom_hooks if hook.type == 'PrepareTTAHook']
    (alone,) = MeanProbability(model).test_step(batch_of(cfg))
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        runner = SimpleNamespace(model=MMDistributedDataParallel(model, broadcast_buffers=False))
        HOOKS.build(hook).before_test(runner)
        (wrapped,) = runner.model.test_step(batch_of(cfg))
    finally:
        dist.destroy_process_group()
    assert torch.equal(wrapped.pred_sem_seg.data, alone.pred_sem_seg.data)


@torch.no_grad()
def test_a_single_channel_is_a_probability_already(data) -> None:
    cfg = recipe(data)
    cfg.model.decode_head.update(
        num_classes=2, out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)
    )
    use_tta(cfg, [1.0], flip=True)
    binary = undecided(cfg)
    image = np.asarray(Image.open(data / 'leftImg8bit/val/a_leftImg8bit.png'))
    (sample,) = MeanProbability(binary).test_step(batch_of(cfg))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, 'softmax', lambda self, dim: self.sigmoid())
        mean = sum(probabilities(binary, image, 1.0, flip) for flip in (False, True)) / 2
    assert torch.equal(sample.pred_sem_seg.data.bool(), mean > binary.decode_head.threshold)
    assert 0.02 < sample.pred_sem_seg.data.float().mean() < 0.98


@torch.no_grad()
def test_sliding_windows_are_averaged_where_they_overlap(data, model) -> None:
    cfg = recipe(data)
    use_sliding_window(cfg, (24, 32), (16, 20))
    (plain,) = model.test_step(batch_of(recipe(data)))
    init_default_scope('mmseg')
    sliding = MODELS.build(cfg.model).eval()
    sliding.load_state_dict(model.state_dict())
    (sample,) = sliding.test_step(batch_of(cfg))

    x = sliding.data_preprocessor(batch_of(cfg))['inputs']
    total, count = torch.zeros(4, HEIGHT, WIDTH), torch.zeros(HEIGHT, WIDTH)
    for top in (0, 16):
        for left in (0, 20, 24):
            window = x[:, :, top : top + 24, left : left + 32]
            logits = model.encode_decode(window, [dict(img_shape=(24, 32))])[0]
            total[:, top : top + 24, left : left + 32] += logits
            count[top : top + 24, left : left + 32] += 1
    assert count.min() == 1
    assert count.max() == 6
    torch.testing.assert_close(sample.seg_logits.data, total / count, atol=1e-5, rtol=1e-5)
    assert (sample.seg_logits.data - plain.seg_logits.data).abs().max() > 0.1


@pytest.mark.parametrize(
    ('name', 'sizes'),
    [
        ('cityscapes', [dict(scale=(1024, 512)), dict(scale=(2048, 1024))]),
        ('cityscapes-769x769', [dict(scale=(1024, 512)), dict(scale=(2049, 1025))]),
        ('voc12aug-513x513', [dict(scale_factor=0.5), dict(scale_factor=1.0)]),
    ],
)
def test_recipes_are_augmented_around_their_own_test_size(name: str, sizes: list[dict]) -> None:
    cfg = Config.fromfile(CONFIGS / '_base_' / 'datasets' / f'{name}.py')
    use_tta(cfg, [0.5, 1.0])
    load, augment = cfg.test_dataloader.dataset.pipeline
    assert load.type.startswith('LoadImage')
    resizes, flips, labels, pack = augment.transforms
    assert resizes == [dict(type='Resize', keep_ratio=True, **size) for size in sizes]
    assert [flip.prob for flip in flips] == [0, 1]
    assert [step.type for step in (*labels, *pack)] == ['LoadStrictLabels', 'PackSegInputs']
    assert cfg.val_dataloader.dataset.pipeline[-1].type == 'PackSegInputs'


def test_what_cannot_be_augmented_or_covered_is_refused(data) -> None:
    steps = [dict(type='LoadImageFromFile'), dict(type='RandomCrop'), dict(type='PackSegInputs')]
    text = (
        'test-time augmentation of the pipeline LoadImageFromFile, RandomCrop, PackSegInputs: LoadImage..., at most '
        'one Resize, LoadStrictLabels, LoadAnnotations and, last, PackSegInputs are expected'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        tta_pipeline(steps, SCALES, flip=True)
    with pytest.raises(ValueError, match=r'^scales=\(0, 1\): one or more factors above 0 are expected$'):
        use_tta(recipe(data), [0, 1])
    text = (
        'sliding window of (24, 32) in steps of (25, 20): (height, width) >= 1, and steps not larger than the window, '
        'are expected'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        use_sliding_window(recipe(data), (24, 32), (25, 20))


def test_sides_of_windows_are_read() -> None:
    assert window_side('769') == (769, 769)
    assert window_side('512x1024') == (512, 1024)
    with pytest.raises(ValueError, match=r"^--sliding-window '512,512': N or HEIGHTxWIDTH is expected$"):
        window_side('512,512')
