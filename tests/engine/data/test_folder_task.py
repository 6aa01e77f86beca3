"""What a folder is for is recognised by what it has."""

from pathlib import Path

import pytest

from wsbcn_mm.engine.data.folder_task import clip_lists, task_of_folder


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ('files', 'task'),
    [
        (['images/a.jpg', 'masks/a.png'], 'segmentation'),
        (['images/train/a.jpg', 'classes.txt'], 'segmentation'),
        (['valid/images/a.jpg', 'valid/masks/a.png'], 'segmentation'),
        (['run/a.mp4', 'jump/b.ts'], 'video'),
        (['train/run/a.unheard_of'], 'video'),
        (['run/a.gif', 'run/poster.jpg'], 'video'),
    ],
)
def test_layouts(tmp_path: Path, files: list[str], task: str) -> None:
    assert task_of_folder(touch(tmp_path, *files)) == task


@pytest.mark.parametrize('header', ['path,label', '\ufeffpath;label;source', 'Path\tLabel', 'split, path, label'])
def test_a_list_of_clips(tmp_path: Path, header: str) -> None:
    (tmp_path / 'clips.csv').write_text(f'{header}\n')
    (tmp_path / 'other.csv').write_text('name,age\n')
    (tmp_path / 'split.csv').write_text('path,label,split\n')
    assert clip_lists(tmp_path) == [tmp_path / 'clips.csv']
    assert task_of_folder(tmp_path) == 'video'


def test_neither(tmp_path: Path) -> None:
    touch(tmp_path, 'img/a.jpg', 'img/b.jpg', 'ann/a.png', '.cache/x.mp4', 'film.mp4')
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared
        task_of_folder(tmp_path)
    assert str(error.value) == (
        f'{tmp_path} has neither images/ and masks/, for segmentation, nor class folders of videos or a CSV with the '
        f'columns path,label, for video. It has 2 .jpg, 1 .png, 1 .mp4; nearest to images/: {tmp_path}/img'
    )
    (tmp_path / 'none').mkdir()
    with pytest.raises(ValueError, match=r'for video. It has no files$'):
        task_of_folder(tmp_path / 'none')
    with pytest.raises(ValueError, match=r'film.mp4 is a file: the folder of a data set is accepted$'):
        task_of_folder(tmp_path / 'film.mp4')
    with pytest.raises(FileNotFoundError, match=r'nome does not exist; nearest existing name: .*/none$'):
        task_of_folder(tmp_path / 'nome')
