import re
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmseg.registry import TRANSFORMS
from PIL import Image

from tests.segmentation.pictures import textured

KINDS = ['plain.png', 'one-row.png', 'grey.png', 'palette.png', 'alpha.png', 'turned.png', 'photo.jpg']


@pytest.mark.parametrize('kind', KINDS)
def test_images_are_what_mmcv_reads(tmp_path: Path, kind: str) -> None:
    picture = Image.fromarray(textured(1 if kind == 'one-row.png' else 50, 71))
    modes = {'grey.png': 'L', 'palette.png': 'P', 'alpha.png': 'RGBA'}
    exif = Image.Exif()
    if kind == 'turned.png':
        exif[0x0112] = 6
    picture.convert(modes.get(kind, 'RGB')).save(tmp_path / kind, exif=exif)
    expected = LoadImageFromFile()(dict(img_path=str(tmp_path / kind)))
    found = TRANSFORMS.build(dict(type='LoadImage'))(dict(img_path=str(tmp_path / kind)))
    np.testing.assert_array_equal(found.pop('img'), expected.pop('img'))
    assert found == expected


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'text'])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / 'street.png'
    Image.fromarray(textured(50, 70)).save(file)
    content = bytearray(file.read_bytes())
    if damage == 'cut':
        del content[len(content) // 2 :]
    elif damage == 'flipped':
        content[len(content) // 2] ^= 1
    else:
        content[:] = b'<html>404 Not Found</html>'
    file.write_bytes(content)
    with pytest.raises(OSError, match=f'^image {re.escape(str(file))} is damaged'):
        TRANSFORMS.build(dict(type='LoadImage'))(dict(img_path=str(file)))
