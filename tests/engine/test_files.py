"""Messages name what is missing and the nearest thing that exists."""

import re

import pytest

from wsbcn_mm.engine.files import missing, require, some


def test_what_is_there_passes(tmp_path):
    require(tmp_path)
    (tmp_path / 'train.txt').touch()
    require(tmp_path / 'train.txt')


def test_what_is_not_there_is_named_with_the_nearest_name(tmp_path):
    (tmp_path / 'train_list.txt').touch()
    text = f'{tmp_path}/train.txt does not exist; nearest existing name: {tmp_path}/train_list.txt'
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(text)}$'):
        require(tmp_path / 'train.txt')


def test_where_nothing_is_like_it_the_folder_is_named_where_the_path_breaks_off(tmp_path):
    files = [tmp_path / 'kinetics' / name for name in ('a.csv', 'b.csv', 'c.csv', 'd.csv')]
    assert missing(files) == (
        f'missing: {files[0]}, {files[1]}, {files[2]} and 1 more; nearest existing folder: {tmp_path}, which is empty'
    )
    (tmp_path / '0').touch()
    assert missing(files[:1]) == f'missing: {files[0]}; nearest existing folder: {tmp_path}, which has 0'


def test_many_names_are_counted():
    assert some(['a', 'b']) == 'a, b'
    assert some(map(str, range(9))) == '0, 1, 2 and 6 more'
