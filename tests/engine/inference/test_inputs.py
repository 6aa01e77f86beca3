"""Files from paths, folders and globs."""

import re
from pathlib import Path

import pytest

from wsbcn_mm.engine.inference.inputs import expand, is_many


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a/2.png', 'a/1.JPG', 'a/deep/3.tif', 'a/.hidden.png', 'a/.git/4.png', 'a/notes.txt', 'b/clip.mp4'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path('empty').mkdir()
    return tmp_path


def names(paths, kind='images'):
    return [str(path) for path in expand(paths, kind)]


def test_folders_globs_and_files_are_found_once(tree):
    assert names(['a']) == ['a/1.JPG', 'a/2.png', 'a/deep/3.tif']
    assert names(['a/*']) == ['a/1.JPG', 'a/2.png', 'a/deep/3.tif']
    assert names(['a/**/*.tif', 'a/2.png', 'a/2.png', 'a']) == ['a/deep/3.tif', 'a/2.png', 'a/1.JPG']
    assert names(['a/notes.txt']) == ['a/notes.txt']
    assert names(['.'], 'videos') == ['b/clip.mp4']
    assert is_many('a')
    assert is_many('a/*.png')
    assert not is_many('a/2.png')


def test_a_name_with_brackets_is_a_name(tree):
    Path('a/[1].png').touch()
    assert names(['a/[1].png']) == ['a/[1].png']
    assert not is_many('a/[1].png')


def test_a_folder_of_numbered_images_is_a_video(tree):
    for number in range(1, 4):
        for folder in ('frames/x', 'frames/y'):
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, f'{number:05d}.jpg').touch()
    Path('frames/y/cover.jpg').touch()
    assert names(['frames'], 'videos') == ['frames/x']
    assert names(['frames/x'], 'videos') == ['frames/x']
    assert len(names(['frames'])) == 7


@pytest.mark.parametrize(
    ('path', 'kind', 'error', 'message'),
    [
        ('a/2.pgn', 'images', FileNotFoundError, "input='a/2.pgn' does not exist; nearest existing name: a/2.png"),
        ('a/2*.pgn', 'images', FileNotFoundError, "input='a/2*.pgn': no file matches; nearest existing name: a/2.png"),
        ('empty', 'images', ValueError, "input='empty': the folder has no images (SUFFIXES); it is empty"),
        ('b', 'images', ValueError, "input='b': the folder has no images (SUFFIXES); it has clip.mp4"),
        ('b/*', 'images', ValueError, "input='b/*': it matches b/clip.mp4, but no images"),
        ('b/clip.mp4', 'images', ValueError, "input='b/clip.mp4': .mp4 files are videos, this model takes images"),
        ('a/2.png', 'videos', ValueError, "input='a/2.png': .png files are images, this model takes videos"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(tree, path, kind, error, message):
    with pytest.raises(error, match=f'^{re.escape(message)}$'.replace('SUFFIXES', '[.a-z, ]+')):
        expand([path], kind)
