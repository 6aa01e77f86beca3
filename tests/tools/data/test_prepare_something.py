"""tools/data/prepare_something.py on small trees and cut-up archives of the real shape."""

import json
import re
from io import StringIO
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from rich.console import Console

from tests.tools.tiny_runs import ROOT, run_tool
from tests.video.small_sets import (
    CLASSES,
    COUNTS,
    SOMETHING,
    clip_bytes,
    something_parts,
    write_files,
    write_something_lists,
)
from wsbcn_mm.video.data.manifest import load_manifest
from wsbcn_mm.video.data.prepare_something import NUM_CLASSES, VERSIONS, prepare_something


def prepare(root: Path, version: str) -> tuple[list[str], str]:
    """Return the problems and the printed text."""
    printed = StringIO()
    problems = prepare_something(root, Console(file=printed), version, published=COUNTS, num_classes=len(CLASSES))
    return problems, printed.getvalue()


def unpacked(root: Path) -> None:
    """Write v2 with the contents of its archive and its former list names."""
    write_something_lists(root, 'v2', 'something-something-v2-{}.json')
    clips = [clip for listed in SOMETHING.values() for clip in listed]
    write_files(root / '20bn-something-something-v2', {f'{clip}.webm': clip_bytes('.webm') for clip in clips})


def test_published_counts_add_up() -> None:
    assert sum(VERSIONS['v1'].published.values()) == 108499
    assert sum(VERSIONS['v2'].published.values()) == 220847
    assert NUM_CLASSES == 174


@pytest.mark.parametrize('version', ['v1', 'v2'])
def test_parts_become_a_set_that_the_recipes_read(tmp_path: Path, version: str) -> None:
    something_parts(tmp_path, version, zipped=version == 'v2')
    problems, printed = prepare(tmp_path, version)
    assert problems == []
    assert 'train: 3 clips are listed, 3 are published; 3 have a file, 3 can be used (100.00 % of the' in printed
    rows = load_manifest(tmp_path / 'manifest.csv')
    suffix, frames, fps = ('', 5, None) if version == 'v1' else ('.webm', 6, 12.0)
    size = (72, 48) if version == 'v1' else (64, 36)
    assert [row.path for row in rows] == [f'20bn-something-something-{version}/{n}{suffix}' for n in range(11, 17)]
    assert {row[1:5] for row in rows} == {(frames, fps, *size)}
    assert [row.label for row in rows] == [2, 0, 1, 2, 0, None]
    assert [row.class_name for row in rows[:3]] == [CLASSES[2], CLASSES[0], CLASSES[1]]
    assert [row.split for row in rows] == ['train'] * 3 + ['val'] * 2 + ['test']
    dataset = Config.fromfile(ROOT / f'configs/_base_/datasets/sth{version}.py').val_dataloader.dataset
    decode = dict(dataset.pipeline[0], sampler=dict(type='segments', num_segments=4))
    pipeline = [decode, dict(type='PackClipInputs')]
    dataset = DATASETS.build(dict(dataset, data_root=f'{tmp_path}/', pipeline=pipeline))
    assert [dataset.get_data_info(number)['num_frames'] for number in (0, 1)] == [frames, frames]
    assert [int(item['data_samples'].gt_label) for item in dataset] == [2, 0]

    manifest = (tmp_path / 'manifest.csv').read_bytes()
    for part in tmp_path.glob('20bn-something-something-??-??'):
        part.unlink()
    assert prepare(tmp_path, version)[0] == []
    assert (tmp_path / 'manifest.csv').read_bytes() == manifest


def test_missing_pieces_are_named_with_their_places(tmp_path: Path) -> None:
    write_something_lists(tmp_path, 'v2', 'labels/{}.json')
    (tmp_path / 'labels/test.json').unlink()
    message = (
        f'missing: {tmp_path}/something-something-v2-test.json; {tmp_path}/20bn-something-something-v2/ or '
        f'{tmp_path}/20bn-something-something-v2-00, 20bn-something-something-v2-01 and so on, from '
        'https://www.qualcomm.com/developer/software/something-something-v-2-dataset; nearest existing name: '
    )
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(message)}'):
        prepare(tmp_path, 'v2')
    something_parts(tmp_path, 'v2')
    (tmp_path / '20bn-something-something-v2-01').rename(tmp_path / 'elsewhere')
    with pytest.raises(FileNotFoundError, match=r'2 parts of 20bn-something-something-v2, but lacks 20bn-.*-v2-01'):
        prepare(tmp_path, 'v2')
    (tmp_path / '20bn-something-something-v2-02').unlink()
    with pytest.raises(ValueError, match=r'-v2-00 is damaged \(.*\): the download may be incomplete$'):
        prepare(tmp_path, 'v2')


def test_everything_wrong_is_listed(tmp_path: Path) -> None:
    unpacked(tmp_path)
    folder = tmp_path / '20bn-something-something-v2'
    (folder / '12.webm').unlink()
    (folder / '15.webm').write_bytes(clip_bytes('.webm')[:600])
    labels = tmp_path / 'something-something-v2-labels.json'
    labels.write_text(json.dumps({name: i for i, name in enumerate([*CLASSES, 'Closing something'])}))
    entries = json.loads((tmp_path / 'something-something-v2-train.json').read_text())
    entries.append({'id': '17', 'label': 'x', 'template': 'Closing [something]'})
    (tmp_path / 'something-something-v2-train.json').write_text(json.dumps(entries))
    problems, printed = prepare(tmp_path, 'v2')
    assert problems[:4] == [
        'something-something-v2-labels.json: 4 classes, 3 are published',
        'something-something-v2-train.json: 4 clips, 3 are published',
        'train: 20bn-something-something-v2/12.webm is listed but has no file',
        'train: 20bn-something-something-v2/17.webm is listed but has no file',
    ]
    assert len(problems) == 5
    assert problems[4].startswith('val: 20bn-something-something-v2/15.webm ')
    assert all(f'wrong: {line}' in printed for line in problems)
    write_files(folder, {name: clip_bytes('.webm') for name in ('12.webm', '15.webm', '17.webm')})
    assert len(prepare(tmp_path, 'v2')[0]) == 2


def test_lists_with_a_clip_in_two_splits_or_an_unknown_class_are_errors(tmp_path: Path) -> None:
    unpacked(tmp_path)
    lists = [tmp_path / f'something-something-v2-{name}.json' for name in ('train', 'validation')]
    entries = [json.loads(file.read_text()) for file in lists]
    lists[1].write_text(json.dumps(entries[1] + entries[0][:1]))
    message = "1 clips are listed more than once; the first is '20bn-something-something-v2/11.webm' (train and val)"
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare(tmp_path, 'v2')
    entries[1][1]['template'] = 'Opening [something] twice'
    lists[1].write_text(json.dumps(entries[1], indent=1))
    with pytest.raises(ValueError, match=r"validation.json:7: class 'Opening something twice' of clip 15 is not in th"):
        prepare(tmp_path, 'v2')
    with pytest.raises(ValueError, match=r"^version='v3': v1 or v2 is expected$"):
        prepare(tmp_path, 'v3')


def test_the_tool_lists_problems_and_exits_with_1(tmp_path: Path, capsys) -> None:
    unpacked(tmp_path)
    for clip in (tmp_path / '20bn-something-something-v2').iterdir():
        clip.with_suffix('.mp4').write_bytes(clip_bytes('.mp4'))
        clip.unlink()
    with pytest.raises(SystemExit, match=r'^1$'):
        run_tool('data/prepare_something.py', 'v2', tmp_path, '--processes', '1', '--suffix', '.mp4')
    printed = capsys.readouterr().out
    assert 'val: 2 clips are listed, 24777 are published; 2 have a file, 2 can be used (0.01 % of the publ' in printed
    assert 'wrong: something-something-v2-labels.json: 3 classes, 174 are published\n' in printed
    assert printed.endswith('not complete\n')
