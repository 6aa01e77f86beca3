"""Messages name the missing file and the nearest existing name; hashes are those of the bytes."""

import hashlib
import re

import pytest

from wsbcn_mm.engine.files import missing, require, sha256, some


def test_an_existing_path_passes(tmp_path):
    require(tmp_path)
    (tmp_path / 'train.txt').touch()
    require(tmp_path / 'train.txt')


def test_a_missing_file_is_named_with_the_nearest_name(tmp_path):
    (tmp_path / 'train_list.txt').touch()
    text = f'{tmp_path}/train.txt does not exist; nearest existing name: {tmp_path}/train_list.txt'
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(text)}$'):
        require(tmp_path / 'train.txt')


def test_without_a_similar_name_the_last_existing_folder_is_named(tmp_path):
    files = [tmp_path / 'kinetics' / name for name in ('a.csv', 'b.csv', 'c.csv', 'd.csv')]
    assert missing(files) == (
        f'missing: {files[0]}, {files[1]}, {files[2]} and 1 more; nearest existing folder: {tmp_path}, which is empty'
    )
    (tmp_path / '0').touch()
    assert missing(files[:1]) == f'missing: {files[0]}; nearest existing folder: {tmp_path}, which has 0'


def test_many_names_are_counted():
    assert some(['a', 'b']) == 'a, b'
    assert some(map(str, range(9))) == '0, 1, 2 and 6 more'


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / 'file').write_bytes(data)
    assert sha256(tmp_path / 'file') == hashlib.sha256(data).hexdigest()
