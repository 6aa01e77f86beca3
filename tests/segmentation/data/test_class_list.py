"""classes.txt in all its forms, and what is wrong with others."""

from pathlib import Path

import pytest
from mmseg.datasets import PascalVOCDataset

from wsbcn_mm.segmentation.data.class_list import (
    LINE,
    format_class_list,
    index_class_list,
    load_class_list,
    pack,
    unpack,
    voc_colour,
)


def load(tmp_path: Path, text: str):
    (tmp_path / 'classes.txt').write_text(text)
    return load_class_list(tmp_path / 'classes.txt')


def test_names_are_the_values_from_0(tmp_path: Path) -> None:
    classes = load(tmp_path, '\ufeff# of the camera\nfloor\n\ntraffic light\r\nignore 255\n')
    assert classes.names == ('floor', 'traffic light')
    assert classes.label_map == {0: 0, 1: 1, 255: 255}
    assert not classes.by_colour
    assert (classes.class_name(1), classes.class_name(255), classes.class_name(7)) == ('traffic light', 'ignore', None)


@pytest.mark.parametrize('text', ['floor 0\ncrack 255\n', 'floor,0\ncrack,255', 'floor\t0\r\ncrack: 255\n'])
def test_values(tmp_path: Path, text: str) -> None:
    classes = load(tmp_path, text)
    assert (classes.names, classes.label_map) == (('floor', 'crack'), {0: 0, 255: 1})
    assert classes.palette == (voc_colour(0), voc_colour(1))


@pytest.mark.parametrize(
    'text',
    [
        'road 128 64 128\nsky #4682b4\nignore 255 255 255\n',
        'road,128,64,128\nsky,70,130,180\nignore,#ffffff',
        'road:128,64,128::\nsky:70,130,180::\nignore:255,255,255::\n',
    ],
)
def test_colours(tmp_path: Path, text: str) -> None:
    classes = load(tmp_path, text)
    assert classes.by_colour
    assert classes.label_map == {0x804080: 0, 0x4682B4: 1, 0xFFFFFF: 255}
    assert classes.palette == ((128, 64, 128), (70, 130, 180))
    assert classes.raw_name(0x804080) == '#804080'
    assert unpack(pack((128, 64, 128))) == (128, 64, 128)


def test_values_with_colours_to_draw_in(tmp_path: Path) -> None:
    classes = load(tmp_path, 'road 7 128 64 128\n"digit 4" 4 #010203\nignore 0\nignore 300\n')
    assert not classes.by_colour
    assert classes.names == ('road', 'digit 4')
    assert classes.label_map == {7: 0, 4: 1, 0: 255, 300: 255}
    assert classes.palette == ((128, 64, 128), (1, 2, 3))


def test_a_list_is_written_and_read(tmp_path: Path) -> None:
    for classes in (
        index_class_list(['floor', 'digit 4']),
        load(tmp_path, 'a 3 #0102ff\nb 1\nignore 0'),
        load(tmp_path, 'a #0102ff\nb 1 2 3\nignore 0 0 0'),
    ):
        assert load(tmp_path, format_class_list(classes)) == classes


def test_colours_of_voc() -> None:
    assert [list(voc_colour(index)) for index in range(21)] == PascalVOCDataset.METAINFO['palette']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', f'classes.txt: no classes; each line is {LINE}'),
        ('ignore 255', f'classes.txt: no classes; each line is {LINE}'),
        ('road\nroad', "classes.txt:2: class 'road' is in line 1 already"),
        (
            'digit 0\ndigit 1',
            "classes.txt:2: class 'digit' is in line 1 already; a name that ends in a number stands in quotes",
        ),
        ('road 3\nsky 3', 'classes.txt:2: value 3 is in line 1 already'),
        ('road #010203\nsky 1 2 3', 'classes.txt:2: colour #010203 is in line 1 already'),
        (
            'road 7\nsky\ncar 1 2 3',
            'classes.txt: line 1 has a value, line 2 has neither value nor colour, line 3 has a colour; all classes '
            f'need the same: {LINE}',
        ),
        ('road\nignore', "classes.txt:2: 'ignore' has no value: ignore 255"),
        ('road 1 2 3\nignore 255', "classes.txt:2: 'ignore' has no colour: ignore 255 255 255"),
        ('road 65536', 'classes.txt:1: road=65536: a whole number from 0 to 65535 is accepted'),
        ('road -1', 'classes.txt:1: road=-1: a whole number from 0 to 65535 is accepted'),
        ('road 0.5', 'classes.txt:1: road=0.5: a whole number from 0 to 65535 is accepted'),
        ('road 1 2 256', 'classes.txt:1: road=256: a whole number from 0 to 255 is accepted'),
        (
            'road 1 2',
            f"classes.txt:1: 'road 1 2': {LINE} is accepted; a name that ends in a number stands in quotes",
        ),
        ('1 2 3', f"classes.txt:1: '1 2 3': the name is missing; {LINE} is accepted"),
        ('name,r,g,b\nroad,1,2,3', 'line 1 has neither value nor colour, line 2 has a colour; all'),
        ('\n'.join(f'c{index}x' for index in range(254)), 'classes.txt: 254 classes; up to 253 are accepted'),
    ],
)
def test_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared
        load(tmp_path, text)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / 'classes.txt'))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / 'class.txt').touch()
    with pytest.raises(FileNotFoundError, match=r'classes.txt does not exist; nearest existing name: .*/class.txt'):
        load_class_list(tmp_path / 'classes.txt')
    (tmp_path / 'classes.txt').write_bytes('straße\n'.encode('latin-1'))
    with pytest.raises(ValueError, match=r'classes.txt: not UTF-8: '):
        load_class_list(tmp_path / 'classes.txt')
