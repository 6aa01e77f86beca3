"""Whole images and tiles of small models, with one output and with one channel; the pictures of their results."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.small_models import save, segmentation_config
from tests.segmentation.pictures import textured
from wsbcn_mm.inference import load
from wsbcn_mm.segmentation.inference.pictures import overlay
from wsbcn_mm.segmentation.inference.segmenter import LARGE

CLASSES = ('sky', 'road', 'tree')
PALETTE = [[10, 20, 200], [90, 90, 90], [20, 160, 40]]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return load(save(segmentation_config(), tmp_path_factory.mktemp('model') / 'c.pth', CLASSES, PALETTE), device='cpu')


def images(folder, *sizes):
    for number, size in enumerate(sizes):
        Image.fromarray(textured(*size)).save(folder / f'{number}.png')
    return sorted(folder.glob('*.png'))


def test_a_result_has_names_and_scores(model):
    image = textured(60, 90)
    result = model(image, keep_logits=True)
    assert result.source is None
    assert np.array_equal(result.image, image)
    assert result.class_map.shape == result.confidence.shape == (60, 90)
    assert result.class_map.dtype == np.uint8
    probabilities = result.logits.softmax(0)
    assert np.array_equal(result.class_map, result.logits.argmax(0))
    assert result.confidence == pytest.approx(probabilities.amax(0).numpy())
    assert sum(one.share for one in result.classes) == pytest.approx(1)
    assert [one.pixels for one in result.classes] == sorted((one.pixels for one in result.classes), reverse=True)
    for one in result.classes:
        chosen = result.class_map == one.class_id
        assert one.name == CLASSES[one.class_id]
        assert one.pixels == chosen.sum()
        assert one.score == pytest.approx(result.confidence[chosen].mean(), rel=1e-4)
    assert str(result).startswith('array, 90 x 60: ')
    assert result.palette == tuple(map(tuple, PALETTE))


def test_paths_lists_folders_and_globs(model, tmp_path):
    files = images(tmp_path, (40, 50), (40, 50), (50, 40))
    one = model(files[0])
    assert one.source == str(files[0])
    for many in (files, tmp_path, str(tmp_path / '*.png'), [str(file) for file in files]):
        results = model(many)
        assert [result.source for result in results] == [str(file) for file in files]
        assert np.array_equal(results[0].class_map, one.class_map)
    assert isinstance(model(str(tmp_path / '0*.png')), list)


def test_batches_of_one_size_give_the_same(model, tmp_path):
    files = images(tmp_path, (40, 50), (40, 50), (50, 40), (40, 50))
    sizes = []
    hook = model.model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    batched = model(files, batch_size=3)
    hook.remove()
    assert sizes == [2, 1, 1]
    for one, other in zip(batched, model(files), strict=True):
        assert one.source == other.source
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
    with pytest.raises(ValueError, match=r'^batch_size=0: at least 1 is expected$'):
        model(files, batch_size=0)


def test_tiles_give_the_whole_image_for_a_network_that_looks_no_further(model):
    image = textured(320, 480)
    whole = model(image, tile='off', keep_logits=True)
    shares = []
    tiled = model(image, tile=(192, 256), overlap=96, batch_size=2, advance=shares.append)
    assert tiled.tiles == 9
    assert sum(shares) == pytest.approx(1)
    assert tiled.notes == ('in 9 tiles of 192 x 256 pixels, 96 shared, at its own resolution',)
    # Equal but for ties: a blend adds up in another order.
    top = whole.logits.sort(0, descending=True).values
    clear = (top[0] - top[1] > 1e-4).numpy()
    assert clear.mean() > 0.99
    assert np.array_equal(tiled.class_map[clear], whole.class_map[clear])
    assert tiled.pixels.sum() == image.shape[0] * image.shape[1]
    assert tiled.scores == pytest.approx(whole.scores, abs=1e-3)


def test_only_large_images_are_tiled_by_default(model, monkeypatch):
    assert LARGE == 2**24
    assert model(textured(600, 700)).tiles == 1
    monkeypatch.setattr('wsbcn_mm.segmentation.inference.segmenter.LARGE', 600 * 700 - 1)
    result = model(textured(600, 700))
    assert result.notes == ('in 4 tiles of 512 x 512 pixels, 128 shared, at its own resolution',)
    assert model(textured(600, 700), tile='off').tiles == 1
    assert model(textured(90, 90), tile=128).tiles == 1


def test_thin_images_and_mixed_sizes(model):
    image = textured(8, 700)
    results = list(model.iterate([textured(90, 90), image, textured(90, 90)], tile=256))
    assert [result.tiles for result in results] == [1, 4, 1]
    assert results[1].class_map.shape == (8, 700)
    assert np.array_equal(results[0].class_map, results[2].class_map)


@pytest.mark.parametrize('tile', [0, 'N', (64,), 31, (64, 'x')])
def test_other_tiles_are_refused(model, tile):
    with pytest.raises(
        ValueError, match=r"^tile=.*: 'auto', 'off', or pixels from 32, one number or \(height, width\)$"
    ):
        model(textured(40, 40), tile=tile)


def test_tiles_leave_out_a_size_that_is_meant_for_whole_images(tmp_path):
    cfg = segmentation_config()
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=(64, 64), keep_ratio=False))
    model = load(save(cfg, tmp_path / 'c.pth', CLASSES), device='cpu')
    sizes = []
    model.model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    assert model(textured(100, 130)).class_map.shape == (100, 130)
    assert model(textured(100, 130), tile=64).class_map.shape == (100, 130)
    assert sizes[0] == (64, 64)
    assert set(sizes[1:]) > {(64, 64)}


def test_a_model_with_one_output(tmp_path):
    cfg = segmentation_config(
        2, out_channels=1, threshold=0.3, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)
    )
    model = load(save(cfg, tmp_path / 'c.pth', ('background', 'crack'), PALETTE[:2]), device='cpu')
    image = textured(320, 400)
    result = model(image, keep_logits=True)
    assert np.array_equal(result.class_map, (result.logits[0] > 0.3).numpy().astype(np.uint8))
    assert {one.name for one in result.classes} == {'background', 'crack'}
    probability = result.logits[0].numpy()
    expected = np.where(result.class_map, probability, 1 - probability)
    assert result.confidence == pytest.approx(expected)
    tiled = model(image, tile=192, overlap=96)
    assert (tiled.class_map == result.class_map).mean() > 0.999
    assert overlay(result).shape[2] == 3


def test_a_model_of_a_single_class_names_what_is_not_the_class(tmp_path):
    cfg = segmentation_config(
        1, out_channels=1, threshold=0.5, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)
    )
    model = load(save(cfg, tmp_path / 'c.pth', ('crack',), PALETTE[:1]), device='cpu')
    assert model.classes == ('background', 'crack')
    assert model.notes == []
    assert set(np.unique(model(textured(40, 40)).class_map)) <= {0, 1}


def test_a_model_of_one_channel(tmp_path):
    model = load(save(segmentation_config(channels=1), tmp_path / 'c.pth', CLASSES, PALETTE), device='cpu')
    assert model.channels == 1
    grey = textured(40, 50)[:, :, 0]
    Image.fromarray(grey).save(tmp_path / 'grey.png')
    result = model(tmp_path / 'grey.png')
    assert np.array_equal(result.class_map, model(grey).class_map)
    assert np.array_equal(result.image, np.repeat(grey[:, :, None], 3, 2))
    with pytest.raises(ValueError, match=r'^array of shape \(40, 50, 3\), uint8: the model takes 1 channel$'):
        model(textured(40, 50))


def test_missing_names_and_colours_are_made_up_and_said(tmp_path):
    file = save(segmentation_config(), tmp_path / 'c.pth')
    with pytest.warns(UserWarning, match=r'^the file has no class names: classes are numbered$'):
        model = load(file, device='cpu')
    assert model.classes == ('class 0', 'class 1', 'class 2')
    assert len(set(model.palette)) == 3
    file = save(segmentation_config(), tmp_path / 'd.pth', ('sky', 'road'), PALETTE[:2])
    with pytest.warns(UserWarning, match=r'^the file names 2 classes, the model has 3: the others are numbered$'):
        assert load(file, device='cpu').classes == ('sky', 'road', 'class 2')


def test_scores_that_are_not_finite_are_refused(tmp_path):
    file = save(segmentation_config(), tmp_path / 'c.pth', CLASSES)
    content = torch.load(file, weights_only=True)
    content['state_dict']['decode_head.conv_seg.bias'][0] = torch.nan
    torch.save(content, file)
    model = load(file, device='cpu')
    for tile in ('off', 64):
        with pytest.raises(ValueError, match=r'^the scores of the prediction for an array are not all finite'):
            model(textured(100, 100), tile=tile)


@pytest.mark.parametrize(
    ('size', 'width', 'height'),
    [
        ((64, 64), 904, 448),
        ((50, 200), 480, 208),
        ((300, 20), 480, 300),
        ((1300, 2600), 2048, 2056),
        ((900, 800), 1608, 900),
    ],
)
def test_overlays_have_a_heading_and_a_legend(model, size, width, height):
    result = model(textured(*size))
    picture = overlay(result)
    assert picture.shape[1] == width
    assert picture.shape[0] > height + 40
    first = result.palette[result.classes[0].class_id]
    assert (picture[-120:] == first).all(axis=2).any()
    assert (picture[:30] == 0).any()


def test_an_opaque_overlay_has_the_colours_of_the_palette(model):
    result = model(textured(500, 500))
    picture = overlay(result, opacity=1.0)
    top = next(row for row in range(len(picture)) if (picture[row, 0] != 255).any())
    panel = picture[top : top + 500, 508:1008]
    assert np.array_equal(panel, np.array(PALETTE, np.uint8)[result.class_map])
    with pytest.raises(ValueError, match=r'^opacity=2: a number from 0 to 1 is expected$'):
        overlay(result, opacity=2)
