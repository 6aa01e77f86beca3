"""The commands and recipes of docs/own_images.md and docs/own_videos.md do what the pages say."""

import re
import shlex
from pathlib import Path

import pytest

from tests.segmentation.annotation_files import SIZE, cvat
from tests.segmentation.folders import COLOURS, labels, save_image, save_mask
from tests.tools.tiny_runs import ROOT, run_tool
from tests.video.clip_files import write_clip

SHORT = ['train_cfg.max_iters=1', 'train_cfg.val_interval=1']
for split in ('train', 'val'):
    SHORT += [f'{split}_dataloader.num_workers=0', f'{split}_dataloader.persistent_workers=False']
SMALL_IMAGES = ['model.data_preprocessor.size=(64,64)']
SMALL_CLIPS = [f'{at}.size=32' for at in ('train_dataloader.dataset.pipeline.1', 'val_dataloader.dataset.pipeline.2')]


def commands(page: str) -> list[list[str]]:
    """The commands of a page, as words."""
    blocks = re.findall(r'^```bash\n(.*?)^```$', (ROOT / 'docs' / page).read_text(), re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run(words: list[str], *more: str) -> None:
    """A command of a page, in the folder that is current; tools that prepare data must end with 0."""
    assert words[0] == 'python'
    tool = words[1].removeprefix('tools/')
    if tool.startswith('data/'):
        with pytest.raises(SystemExit) as exit_:
            run_tool(tool, *words[2:])
        assert exit_.value.code == 0
    else:
        run_tool(tool, *words[2:], *more)


def write_recipe(page: str, name: str) -> None:
    """The recipe of a page, beside the repository's recipes."""
    (recipe,) = re.findall(r'^```python\n(.*?)^```$', (ROOT / 'docs' / page).read_text(), re.DOTALL | re.MULTILINE)
    Path('configs').symlink_to(ROOT / 'configs')
    Path(name).write_text(recipe)


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_images(here: Path, capsys) -> None:
    root = here / 'data/own_images'
    for split, names in (('train', 'abc'), ('val', 'de')):
        for name in names:
            save_image(root / f'images/{split}/{name}.jpg', ord(name), SIZE)
    cvat(here / 'annotations.xml', {f'{name}.jpg': '{road}{car}' for name in 'abcde'})
    check, convert, recolour, train = commands('own_images.md')
    run(convert)
    run(check)
    assert 'train: 3 images, 3 with masks, 30 x 20 pixels\n' in capsys.readouterr().out
    for split, names in (('train', 'abc'), ('val', 'de')):
        for name in names:
            save_image(root / f'images/{split}/{name}.jpg', ord(name))
            save_mask(here / f'colour_masks/{split}/{name}.png', COLOURS[labels(ord(name))])
    (here / 'colours.txt').write_text('background #000000\nroad #804080\ncar #dc143c\n')
    run(recolour)
    run(check)
    printed = capsys.readouterr().out
    assert 'val: 2 images, 2 with masks, 16 x 12 pixels\n' in printed
    assert printed.endswith('\ncomplete\n')
    write_recipe('own_images.md', train[2])
    run(train, '--cfg-options', *SHORT, *SMALL_IMAGES)
    (log,) = here.glob('work_dirs/my_images/*/*.log')
    assert '2 of 2 images scored, each once' in log.read_text()


def test_own_videos(here: Path, capsys) -> None:
    for name in ('jump', 'run'):
        for number in range(5):
            file = here / f'data/own_videos/{name}/{name}{number % 4}_{number}.mp4'
            file.parent.mkdir(parents=True, exist_ok=True)
            write_clip(file, 8 + number, 48, 64)
    check, group, train = commands('own_videos.md')
    run(group)
    (here / 'data/own_videos/split.csv').unlink()
    run(check)
    assert 'videos of each class, train + val: jump 4 + 1, run 4 + 1\n' in capsys.readouterr().out
    write_recipe('own_videos.md', train[2])
    # The process that decodes may be older than this folder.
    data = [f'{split}_dataloader.dataset.data_root={here}/data/own_videos' for split in ('train', 'val', 'test')]
    run(train, '--cfg-options', *data, *SHORT, *SMALL_CLIPS)
    (log,) = here.glob('work_dirs/my_videos/*/*.log')
    assert '2 of 2 annotated clips scored, each once' in log.read_text()
