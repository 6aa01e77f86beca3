"""Images of files and arrays: 16 bits, channels, and what is not an image."""

import struct

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from tests.segmentation.pictures import textured
from wsbcn_mm.segmentation.inference.images import (
    EXTRA_SAMPLES,
    as_rgb,
    bits_and_channels,
    image_of_array,
    image_of_file,
    plain_flag,
)

COLOUR, GREY = dict(type='LoadImageFromFile'), dict(type='LoadImageFromFile', color_type='grayscale')


def read(file, step=COLOUR, channels=3, max_value=None):
    arguments = {key: value for key, value in step.items() if key != 'type'}
    return image_of_file(file, step, LoadImageFromFile(**arguments), channels, max_value)


def test_8_bits_are_what_the_loader_makes_of_them(tmp_path):
    image = textured(40, 50)
    for name in ('a.png', 'a.bmp', 'a.tif', 'a.jpg'):
        cv2.imwrite(str(tmp_path / name), image)
        assert bits_and_channels(tmp_path / name) == (8, 3)
        assert np.array_equal(read(tmp_path / name), cv2.imread(str(tmp_path / name)))
    assert read(tmp_path / 'a.png', GREY, 1).shape == (40, 50)


def test_transparency_is_dropped_as_in_training(tmp_path):
    image = np.dstack([textured(8, 9), np.arange(72, dtype=np.uint8).reshape(8, 9)])
    for name in ('a.png', 'a.tif'):
        Image.fromarray(image).save(tmp_path / name)
        assert bits_and_channels(tmp_path / name) == (8, 3)
        assert np.array_equal(read(tmp_path / name), cv2.imread(str(tmp_path / name)))


@pytest.mark.parametrize('step', [COLOUR, GREY, dict(type='LoadImage')])
@pytest.mark.parametrize('name', ['a.png', 'a.jpg'])
def test_large_files_are_read_as_others_are(tmp_path, monkeypatch, name, step):
    cv2.imwrite(str(tmp_path / name), textured(40, 50))
    expected = read(tmp_path / name, step if step['type'] != 'LoadImage' else COLOUR)
    monkeypatch.setattr('wsbcn_mm.segmentation.inference.images.LARGE', 10)
    assert np.array_equal(image_of_file(tmp_path / name, step, None, 3), expected)
    assert plain_flag(dict(COLOUR, to_float32=True)) is plain_flag(dict(COLOUR, color_type='unchanged')) is None
    assert plain_flag(dict(COLOUR, imdecode_backend='pillow')) is None


@pytest.mark.parametrize('name', ['grey.png', 'grey.tif', 'colour.png', 'colour.tif'])
def test_16_bits_are_refused_or_scaled_on_request(tmp_path, name):
    deep = np.arange(60, dtype=np.uint16).reshape(6, 10) * 68
    deep = deep if name.startswith('grey') else np.dstack([deep, deep // 2, deep // 4])
    cv2.imwrite(str(tmp_path / name), deep)
    with pytest.raises(
        ValueError,
        match=r'has 16 bits per channel, the recipe loads 8: give the value that becomes 255 with --max-value '
        r'\(max_value= in Python\), such as 4095 for 12-bit values$',
    ):
        read(tmp_path / name)
    image = read(tmp_path / name, max_value=4095)
    assert image.shape == (6, 10, 3)
    expected = np.round(deep / 4095 * 255).clip(0, 255)
    assert np.array_equal(image, expected if deep.ndim == 3 else np.repeat(expected[:, :, None], 3, 2))
    assert len(np.unique(read(tmp_path / name, GREY, 1, 4095))) > 50


def test_a_loader_of_its_own_depth_is_left_alone(tmp_path):
    cv2.imwrite(str(tmp_path / 'deep.png'), np.full((4, 4), 3000, np.uint16))
    step = dict(type='LoadImageFromFile', color_type='unchanged', imdecode_backend='cv2')
    assert read(tmp_path / 'deep.png', step, 1).max() == 3000


def test_more_channels_than_the_model_takes_are_refused(tmp_path):
    file = tmp_path / 'bands.tif'
    Image.fromarray(np.dstack([textured(8, 9), textured(8, 9)[:, :, :1]])).save(file)
    transparency, unspecified = (struct.pack('<HHII', EXTRA_SAMPLES, 3, 1, kind) for kind in (2, 0))
    content = file.read_bytes()
    assert content.count(transparency) == 1
    file.write_bytes(content.replace(transparency, unspecified))
    with pytest.raises(ValueError, match=r'has 4 channels, the model takes 3: remove the others$'):
        read(file)


@pytest.mark.parametrize('name', ['text.png', 'text.jpg', 'empty.png'])
def test_what_is_not_an_image_is_named(tmp_path, name):
    (tmp_path / name).write_text('' if name.startswith('empty') else 'a text\n' * 9)
    with pytest.raises(ValueError, match=rf'^image .*{name} cannot be read: \S.*$') as caught:
        read(tmp_path / name)
    assert '\n' not in str(caught.value)


def test_arrays_are_rgb_and_become_what_the_loader_gives(tmp_path):
    image = textured(10, 12)
    assert np.array_equal(image_of_array(image[:, :, ::-1], COLOUR, 3), image)
    assert np.array_equal(image_of_array(image, COLOUR, 3, 'bgr'), image)
    assert image_of_array(image[:, :, 0], GREY, 1).shape == (10, 12)
    assert image_of_array(image[:, :, :1], GREY, 1).shape == (10, 12)
    deep = np.linspace(0, 1, 120).reshape(10, 12)
    assert image_of_array(deep, GREY, 1, max_value=1).tolist() == np.round(255 * deep).tolist()
    assert image_of_array(image, dict(COLOUR, to_float32=True), 3).dtype == np.float32


@pytest.mark.parametrize(
    ('array', 'options', 'message'),
    [
        (np.zeros((4, 5, 4), np.uint8), {}, r'^array of shape \(4, 5, 4\), uint8: the model takes 3 channels$'),
        (np.zeros((4, 5), np.uint8), {}, r'the model takes 3 channels$'),
        (np.zeros((2, 4, 5, 3), np.uint8), {}, r'an image \(height, width, channels\) is expected; several images are'),
        (np.zeros((0, 5, 3), np.uint8), {}, r'an image \(height, width, channels\) is expected'),
        (np.zeros((4, 5, 3)), {}, r'float64: bytes from 0 to 255 \(uint8\) are expected, or max_value='),
        (np.zeros((4, 5, 3)), dict(max_value=0), r'^max_value=0: a number above 0 is expected$'),
        (np.zeros((4, 5, 3), np.uint8), dict(order='gbr'), r"^channel_order='gbr': 'rgb' or 'bgr' is expected$"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, options, message):
    with pytest.raises(ValueError, match=message):
        image_of_array(array, COLOUR, 3, **options)


def test_any_image_can_be_drawn():
    image = textured(4, 5)
    assert np.array_equal(as_rgb(image), image[:, :, ::-1])
    assert np.array_equal(as_rgb(image[:, :, 0]), np.repeat(image[:, :, :1], 3, 2))
    assert np.array_equal(as_rgb(image.astype(np.float32)), image[:, :, ::-1])
    assert as_rgb(np.zeros((4, 5, 6), np.uint16) + 4000).max() == 255
