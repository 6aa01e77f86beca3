"""Label files read through an explicit map: every value has a class, is ignored, or is an error."""

from pathlib import Path

import numpy as np
import pytest
from mmseg.registry import TRANSFORMS
from PIL import Image

import wsbcn_mm.segmentation  # noqa: F401
from wsbcn_mm.segmentation.data.label_map import map_labels, ranges, read_label_file, with_ignored


def load(file: Path, in_results: dict | None = None, **kwargs) -> np.ndarray:
    results = dict(seg_map_path=str(file), seg_fields=[]) | (in_results or {})
    results = TRANSFORMS.build(dict(type='LoadStrictLabels', **kwargs))(results)
    assert results['seg_fields'] == ['gt_seg_map']
    return results['gt_seg_map']


def saved(file: Path, label: list, mode: str = 'L') -> Path:
    Image.fromarray(np.array(label, np.uint8)).convert(mode).save(file)
    return file


def test_every_value_becomes_what_the_map_says(tmp_path: Path) -> None:
    file = saved(tmp_path / 'a.png', [[3, 9], [0, 9]])
    loaded = load(file, label_map={3: 0, 9: 1}, ignore=[0])
    assert loaded.tolist() == [[0, 1], [255, 1]]
    assert loaded.dtype == np.uint8
    assert loaded.flags.writeable
    assert load(file, label_map={'3': 0, '9': 1, '0': 255}).tolist() == loaded.tolist()
    assert load(file, dict(label_map={3: 5, 9: 5, 0: 5})).tolist() == [[5, 5], [5, 5]]


def test_inference_has_images_only() -> None:
    results = dict(img_path='a.png')
    assert TRANSFORMS.build(dict(type='LoadStrictLabels'))(results) == dict(img_path='a.png')


def test_palette_files_are_read_by_index(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 20], [255, 1]], np.uint8)).convert('P')
    picture.putpalette(list(range(255, -1, -1)) * 3)
    picture.save(tmp_path / 'a.png')
    assert read_label_file(tmp_path / 'a.png').tolist() == [[0, 20], [255, 1]]


def test_a_value_outside_the_map_names_file_value_and_pixels(tmp_path: Path) -> None:
    file = saved(tmp_path / 'a.png', [[0, 1, 2], [34, 34, 77]])
    with pytest.raises(ValueError, match=r'outside') as error:
        load(file, label_map={0: 0, 1: 1, 2: 2, 5: 3}, ignore=[255])
    assert str(error.value) == (
        f'label file {file} has values outside the label map: 34 (2 pixels), 77 (1 pixels). '
        'Classes: 0-2, 5; ignored: 255'
    )


def test_the_error_for_a_mask_of_0_and_255_names_the_remedy(tmp_path: Path) -> None:
    file = saved(tmp_path / 'a.png', [[0, 255], [255, 255]])
    with pytest.raises(ValueError, match=r'255 \(3 pixels\).*For a mask of 0 and 255: label_map=\{0: 0, 255: 1\}$'):
        load(file, label_map={0: 0, 1: 1})
    with pytest.raises(ValueError, match=r'^label map') as error:
        load(file, label_map={0: 0, 255: 254})
    assert str(error.value) == (
        'label map {255: 254}: raw values from 0 to 255 and classes from 0 to 253, or 255 (ignored), are expected'
    )
    assert load(file, label_map={0: 0, 255: 1}).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize('mode', ['RGB', 'I;16', '1'])
def test_a_picture_without_one_8_bit_label_per_pixel_is_refused(tmp_path: Path, mode: str) -> None:
    file = saved(tmp_path / 'a.png', [[0, 1], [1, 0]], mode)
    with pytest.raises(ValueError, match=r'is an image of mode') as error:
        load(file, label_map={0: 0, 1: 1})
    assert str(error.value) == (
        f'label file {file} is an image of mode {mode}: one 8-bit label per pixel is expected, '
        'a grey (L) or palette (P) PNG, not colours or instance numbers'
    )


def test_labels_of_another_size_than_the_image_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / 'a.png', [[0, 1, 1], [1, 0, 0]])
    size = dict(img_path='a.jpg', ori_shape=(2, 3), img_shape=(20, 30))
    assert load(file, size, label_map={0: 0, 1: 1}).shape == (2, 3)
    with pytest.raises(ValueError, match=rf'^image a.jpg is 2 x 3 pixels, its label file {file} 3 x 2$'):
        load(file, size | dict(ori_shape=(3, 2)), label_map={0: 0, 1: 1})


def test_a_map_that_contradicts_itself_or_is_missing_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / 'a.png', [[0]])
    with pytest.raises(ValueError, match=r'^label map: the values \[0\] both have a class and are ignored$'):
        with_ignored({0: 0, 1: 1}, [0])
    with pytest.raises(ValueError, match=r'^label map \{300: 0\}'):
        with_ignored({300: 0}, [])
    with pytest.raises(ValueError, match=r'^LoadStrictLabels: ignore=\[0\] needs a label_map$'):
        load(file, ignore=[0])
    with pytest.raises(ValueError, match=rf'^no label map for {file}: give LoadStrictLabels a label_map'):
        load(file)
    with pytest.raises(ValueError, match=r'^reduce_zero_label=True: LoadStrictLabels expects label_map='):
        load(file, dict(reduce_zero_label=True), label_map={0: 0})


def test_the_map_equals_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    label_map = with_ignored(dict(zip(rng.permutation(200).tolist(), range(200), strict=True)), range(200, 256))
    raw = rng.integers(0, 256, (7, 5), dtype=np.uint8)
    mapped = map_labels(raw, label_map, 'a.png')
    assert mapped.tolist() == [[label_map[value] for value in row] for row in raw.tolist()]


def test_ranges() -> None:
    assert ranges([5, 0, 1, 2, 7]) == '0-2, 5, 7'
    assert ranges([]) == 'none'
