"""Regions as pixels: by pixel centres, as COCO's own code has them."""

import numpy as np
import pytest

from wsbcn_mm.segmentation.data.regions import decompressed, ellipse, fill_polygon, from_run_lengths, rectangle


def test_a_square_has_the_pixels_whose_centres_it_holds() -> None:
    inside = fill_polygon(np.array([[2, 3], [6, 3], [6, 5], [2, 5]]), 8, 10)
    expected = np.zeros((8, 10), bool)
    expected[3:5, 2:6] = True
    assert np.array_equal(inside, expected)
    assert np.array_equal(fill_polygon(rectangle(2, 3, 6, 5), 8, 10), expected)
    shifted = rectangle(1.6, 2.6, 5.6, 4.6)
    assert np.array_equal(fill_polygon(shifted, 8, 10), expected)


def test_parts_outside_the_image_are_cut_off() -> None:
    inside = fill_polygon(np.array([[-5, -5], [4, -5], [4, 3], [-5, 3]]), 6, 6)
    assert inside.sum() == 3 * 4
    assert inside[:3, :4].all()
    assert not fill_polygon(np.array([[7, 7], [9, 7], [9, 9]]), 6, 6).any()
    assert fill_polygon(np.array([[-9, -9], [99, -9], [99, 99], [-9, 99]]), 6, 6).all()


def test_a_polygon_against_its_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(-3, 33, (7, 2))
        inside = fill_polygon(points, 25, 30)
        for row, column in rng.integers(0, 25, (40, 2)):
            x, y = column + 0.5, row + 0.5
            crossings = 0
            for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
                crossings += (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
            assert inside[row, column] == crossings % 2


def test_ellipses_and_turned_rectangles() -> None:
    assert abs(fill_polygon(ellipse(50, 40, 30, 20), 100, 100).sum() - np.pi * 600) < 10
    upright = fill_polygon(rectangle(40, 20, 60, 80), 100, 100)
    assert np.array_equal(fill_polygon(rectangle(40, 20, 60, 80, 90), 100, 100), upright.T)
    right_down = fill_polygon(rectangle(10, 45, 90, 55, 30), 100, 100)
    assert right_down[60, 70]
    assert not right_down[40, 70]


def test_run_lengths() -> None:
    assert from_run_lengths([2, 3, 1], 2, 3, by_column=False).tolist() == [[False, False, True], [True, True, False]]
    assert from_run_lengths([2, 3, 1], 2, 3, by_column=True).tolist() == [[False, True, True], [False, True, False]]
    with pytest.raises(ValueError, match=r'^run lengths of 5 pixels: 2 x 3 = 6 are accepted$'):
        from_run_lengths([2, 3], 2, 3, by_column=True)


def test_compressed_run_lengths_of_pycocotools() -> None:
    # pycocotools.mask.encode of these two pictures
    stripes = (np.arange(6 * 7).reshape(6, 7) % 5) < 2
    assert np.array_equal(from_run_lengths(decompressed(STRIPES), 6, 7, by_column=True), stripes)
    square = np.zeros((300, 400), bool)
    square[50:250, 100:103] = True
    assert np.array_equal(from_run_lengths(decompressed(SQUARE), 300, 400, by_column=True), square)
    with pytest.raises(ValueError, match=r"^counts='!': compressed run lengths of COCO are accepted$"):
        decompressed('!')
    with pytest.raises(ValueError, match=r'are accepted, and these break off$'):
        decompressed(SQUARE[:1])


STRIPES = '0120O10O1000O0100000O01000O10O10'
SQUARE = 'R[m0X6T3000jnf2'
