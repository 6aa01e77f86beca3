"""Mask files of every kind become the classes of the list, or an error that names file, value and pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.segmentation.folders import COLOURS, SIZE, labels, save_mask
from wsbcn_mm.segmentation.data.class_list import ClassList, load_class_list
from wsbcn_mm.segmentation.data.masks import map_mask, read_mask

BY_COLOUR = 'floor 0 0 0\nroad 128 64 128\ncar 220 20 60\n'
LABELS = labels(0)


def classes_of(tmp_path: Path, text: str) -> ClassList:
    (tmp_path / 'classes.txt').write_text(text)
    return load_class_list(tmp_path / 'classes.txt')


def read(tmp_path: Path, text: str, file: Path) -> np.ndarray:
    classes = classes_of(tmp_path, text)
    return map_mask(read_mask(file, classes.by_colour), classes, file)


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tif', '.gif'])
@pytest.mark.parametrize('mode', [None, 'P'])
def test_indices_and_palettes(tmp_path: Path, mode: str | None, suffix: str) -> None:
    file = save_mask(tmp_path / f'm{suffix}', LABELS, mode)
    assert np.array_equal(read(tmp_path, 'floor\nroad\ncar', file), LABELS)


def test_a_palette_by_its_colours(tmp_path: Path) -> None:
    file = save_mask(tmp_path / 'm.png', LABELS, 'P')
    assert np.array_equal(read(tmp_path, 'car 220 20 60\nroad 128 64 128\nfloor 0 0 0\n', file), 2 - LABELS)


@pytest.mark.parametrize('alpha', [(), (255,)])
def test_colours(tmp_path: Path, alpha: tuple[int, ...]) -> None:
    pixels = COLOURS[LABELS]
    pixels = np.concatenate([pixels, np.full((*SIZE, len(alpha)), alpha, np.uint8)], -1) if alpha else pixels
    file = save_mask(tmp_path / 'm.png', pixels)
    assert np.array_equal(read(tmp_path, BY_COLOUR, file), LABELS)


@pytest.mark.parametrize(
    'drawn',
    [
        (LABELS > 0).astype(np.uint8) * 255,
        np.repeat(((LABELS > 0).astype(np.uint8) * 255)[..., None], 3, -1),
    ],
)
def test_0_and_255(tmp_path: Path, drawn: np.ndarray) -> None:
    file = save_mask(tmp_path / 'm.png', drawn)
    assert np.array_equal(read(tmp_path, 'floor 0\ncrack 255\n', file), LABELS > 0)
    assert np.array_equal(read(tmp_path, 'floor 0 0 0\ncrack 255 255 255\n', file), LABELS > 0)


def test_one_bit_and_sixteen(tmp_path: Path) -> None:
    file = save_mask(tmp_path / 'm.png', LABELS > 0)
    assert np.array_equal(read(tmp_path, 'floor\ncrack\n', file), LABELS > 0)
    file = save_mask(tmp_path / 'm.png', LABELS.astype(np.uint16) * 1000)
    assert np.array_equal(read(tmp_path, 'floor 0\nroad 1000\nignore 2000\n', file), np.array([0, 1, 255])[LABELS])


@pytest.mark.parametrize(
    ('text', 'drawn', 'message'),
    [
        (
            'floor\nroad\n',
            LABELS,
            'has values outside classes.txt: 2 (12 pixels). Classes: 0-1; ignored: none',
        ),
        (
            'floor\nroad\n',
            np.where(LABELS == 2, 255, LABELS).astype(np.uint8),
            'has values outside classes.txt: 255 (12 pixels). Classes: 0-1; ignored: none. If 255 marks pixels that do '
            'not count, add the line "ignore 255" to classes.txt',
        ),
        (
            'floor\ncrack\n',
            (LABELS > 0).astype(np.uint8) * 255,
            'has values outside classes.txt: 255 (30 pixels). Classes: 0-1; ignored: none. For masks of 0 and 255, '
            'write in classes.txt: floor 0, crack 255',
        ),
        (
            BY_COLOUR,
            np.where((LABELS == 2)[..., None], np.array([220, 21, 60], np.uint8), COLOURS[LABELS]),
            'has colours outside classes.txt: #dc153c (12 pixels). Classes: floor #000000, road #804080, car #dc143c; '
            'ignored: none. Nearest to #dc153c: car #dc143c',
        ),
        (
            BY_COLOUR,
            np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8),
            'So many colours come from smoothed edges or a lossy format: draw and save masks without them',
        ),
        (
            'floor\nroad\ncar\n',
            COLOURS[LABELS],
            'is a picture of colours, #000000 (162 pixels), #804080 (18 pixels), #dc143c (12 pixels): give each class '
            'its colour in classes.txt, as in "road 128 64 128"',
        ),
        (
            BY_COLOUR,
            np.concatenate([COLOURS[LABELS], np.where(LABELS == 0, 0, 255).astype(np.uint8)[..., None]], -1),
            'has 162 transparent pixels, which have no class: save masks without transparency',
        ),
        (BY_COLOUR, LABELS.astype(np.uint16), 'is a picture of mode I;16: RGB or a palette is accepted'),
    ],
)
def test_what_is_outside_the_list(tmp_path: Path, text: str, drawn: np.ndarray, message: str) -> None:
    file = save_mask(tmp_path / 'm.png', drawn)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared
        read(tmp_path, text, file)
    assert str(error.value).startswith(f'mask {file} ')
    assert message in str(error.value)


def test_a_value_of_16_bits_beside_a_mask_of_8(tmp_path: Path) -> None:
    file = save_mask(tmp_path / 'm.png', LABELS)
    with pytest.raises(ValueError, match=r'outside classes.txt: 1 \(18 pixels\), 2 \(12 pixels\). Classes: 0, 1000;'):
        read(tmp_path, 'floor 0\nroad 1000\n', file)


def test_lossy_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'm.jpg is a JPEG, which changes values: save masks as PNG$'):
        read_mask(save_mask(tmp_path / 'm.jpg', LABELS), False)
    file = save_mask(tmp_path / 'm.png', np.random.default_rng(0).integers(0, 3, (40, 40), np.uint8))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(OSError, match=rf'mask {file} is damaged, or of a format that Pillow does not read: '):
        read_mask(file, False)
    with pytest.raises(FileNotFoundError):
        read_mask(tmp_path / 'none.png', False)
    assert Image.open(save_mask(tmp_path / 'q.png', LABELS, 'P')).mode == 'P'
