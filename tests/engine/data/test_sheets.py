from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsbcn_mm.engine.data.sheets import LINE_HEIGHT, MARGIN, captioned, denormalised, fitted, legend, sheet, shortened


def plain(height: int, width: int, colour: int) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_sheet_has_every_picture_in_its_cell() -> None:
    pictures = [plain(10, 30, 1), plain(20, 20, 2), plain(5, 25, 3)]
    page = sheet(pictures, 2, plain(7, 40, 4))
    assert page.shape == (20 + 5 + 7 + 4 * MARGIN, 30 + 20 + 3 * MARGIN, 3)
    assert (page[MARGIN : MARGIN + 10, MARGIN : MARGIN + 30] == 1).all()
    assert (page[MARGIN : MARGIN + 20, 2 * MARGIN + 30 : 2 * MARGIN + 50] == 2).all()
    assert (page[2 * MARGIN + 20 : 2 * MARGIN + 25, MARGIN : MARGIN + 25] == 3).all()
    assert (page[3 * MARGIN + 25 : 3 * MARGIN + 32, MARGIN : MARGIN + 40] == 4).all()
    counts = [(page == value).all(-1).sum() for value in (1, 2, 3, 4)]
    assert counts == [300, 400, 125, 280]
    with pytest.raises(ValueError, match=r'^a sheet needs at least one picture$'):
        sheet([], 2)


def test_pictures_are_fitted_to_a_width() -> None:
    assert fitted(plain(50, 100, 9), 40).shape == (20, 40, 3)
    corner = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = fitted(corner, 7)
    assert large.shape == (6, 6, 3)
    np.testing.assert_array_equal(large[::3, ::3], corner)
    assert len(np.unique(large.reshape(-1, 3), axis=0)) == 4


def test_captions_are_above_and_fit() -> None:
    picture = captioned(plain(8, 200, 7), ['aachen_000000', 'x'])
    assert picture.shape == (8 + 2 * LINE_HEIGHT, 200, 3)
    assert (picture[2 * LINE_HEIGHT :] == 7).all()
    assert (picture[:LINE_HEIGHT] < 128).any()
    long = 'a_very_long_name_of_a_file_' * 5 + '.png'
    short = shortened(long, 150)
    assert short.startswith('a_very')
    assert short.endswith('.png')
    assert captioned(plain(8, 150, 7), [short]).shape[1] == 150
    assert shortened('short', 150) == 'short'


def test_legend_breaks_its_lines() -> None:
    colours = [(10, 20, 30), (200, 100, 50), (1, 2, 3)]
    one = legend(zip(['road', 'sky', 'car'], colours, strict=True), 400)
    assert one.shape == (LINE_HEIGHT, 400, 3)
    for colour in colours:
        assert (one == colour).all(-1).sum() > 80
    assert legend(zip(['road', 'sky', 'car'], colours, strict=True), 60).shape == (3 * LINE_HEIGHT, 60, 3)


def test_normalisation_is_undone() -> None:
    preprocessor = SimpleNamespace(mean=torch.tensor([120.0, 10, 3]).view(3, 1, 1), std=torch.full((3, 1, 1), 57.0))
    bytes_ = torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8)
    fed = (bytes_.float() - preprocessor.mean) / preprocessor.std
    assert torch.equal(denormalised(fed, preprocessor), bytes_)
    assert torch.equal(denormalised(bytes_, preprocessor), bytes_)
    assert torch.equal(denormalised(bytes_.float(), SimpleNamespace()), bytes_)
