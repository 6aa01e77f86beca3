"""tools/data/prepare_folder.py on folders of videos, and the data set that reads what it wrote."""

import csv
import functools
import unicodedata
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from mmengine.registry import DATASETS
from rich.console import Console

from tests.tools.tiny_runs import run_tool
from tests.video.clip_files import write_clip, write_sound
from tests.video.small_sets import clip_bytes, write_files
from wsbcn_mm.video.data import inventory, prepare_folder
from wsbcn_mm.video.data.datasets import ClipDataset
from wsbcn_mm.video.data.manifest import load_manifest
from wsbcn_mm.video.data.prepare_folder import prepare_video_folder


def prepare(root: Path, **options) -> tuple[list[str], str]:
    """Problems and what was printed."""
    printed = StringIO()
    problems = prepare_video_folder(root, Console(file=printed, width=200), **options)
    return problems, printed.getvalue()


def error_of(root: Path, **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        prepare(root, **options)
    return str(error.value)


@functools.cache
def numbered_clip(number: int) -> bytes:
    """A video of 3 + `number` frames."""
    return clip_bytes(num_frames=3 + number)


def write_clips(root: Path, *paths: str) -> Path:
    """Videos of different contents."""
    write_files(root, {path: numbered_clip(number % 5) for number, path in enumerate(paths)})
    return root


def class_folders(root: Path, videos: int = 5) -> Path:
    return write_clips(root, *(f'{name}/{number:03}.mp4' for name in ('run', 'jump') for number in range(videos)))


def rows(root: Path, file: str = 'split.csv') -> list[dict]:
    with (root / file).open() as content:
        return list(csv.DictReader(content))


def splits(root: Path) -> dict[str, str]:
    return {row['path']: row['split'] for row in rows(root)}


def dataset(root: Path, split: str = 'train', **options) -> ClipDataset:
    return DATASETS.build(dict(type='FolderClipDataset', data_root=str(root), split=split, **options))


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """Names of the files that are decoded."""
    names: list[str] = []
    for module in (inventory, prepare_folder):
        probe_many = module.probe_many

        def noting(paths, probe_many=probe_many, **options):
            paths = list(paths)
            names.extend(Path(path).name for path in paths)
            return probe_many(paths, **options)

        monkeypatch.setattr(module, 'probe_many', noting)
    return names


def test_class_folders_are_split_by_class(tmp_path: Path, capsys, probed: list[str]) -> None:
    root = class_folders(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run_tool('data/prepare_folder.py', root, '--processes', '2')
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert '2 classes, in the order of classes.txt\n' in printed
    assert 'train: 8 videos, 8 can be used, 0.00 GB\n  3 to 7 frames (median ' in printed
    assert '), 12 fps, 64 x 36 pixels\n' in printed
    assert 'videos of each class, train + val: jump 4 + 1, run 4 + 1\n' in printed
    assert 'note: split by class with seed 0, kept in split.csv\n' in printed
    assert printed.endswith('\ncomplete\n')
    assert (root / 'classes.txt').read_text() == 'jump\nrun\n'
    assert Counter((row['label'], row['split']) for row in rows(root)) == {
        ('run', 'train'): 4, ('run', 'val'): 1, ('jump', 'train'): 4, ('jump', 'val'): 1,
    }  # fmt: skip
    manifest = load_manifest(root / 'manifest.csv')
    assert [(row.path, row.split) for row in manifest] == list(splits(root).items())
    assert {(row.label, row.class_name, row.status) for row in manifest} == {(0, 'jump', 'ok'), (1, 'run', 'ok')}
    train, val = dataset(root), dataset(root, 'val', test_mode=True)
    assert (len(train), len(val)) == (8, 2)
    assert train.metainfo['classes'] == ['jump', 'run']
    assert all(('jump' in item['path']) == (item['label'] == 0) for item in train)

    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    probed.clear()
    assert prepare(root)[0] == []
    assert probed == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_a_split_stays_and_grows(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    prepare(root, seed=3, val_share=0.4)
    first = splits(root)
    assert Counter(first.values()) == {'train': 6, 'val': 4}
    for name, value in dict(seed=4, val_share=0.2, test_share=0.1).items():
        assert error_of(root, **{name: value}) == (
            f'{name}={value}: accepted for a folder without split, and {root}/split.csv has one: remove it for a new '
            'split'
        )
    write_clips(root, *(f'fall/{number}.mp4' for number in range(5)))
    assert error_of(root) == (
        f"{root}/fall: class 'fall' is not in {root}/classes.txt, which has 'jump', 'run'. Remove the file to have a "
        'new one written, or add the class'
    )
    (root / 'classes.txt').unlink()
    (root / 'run/000.mp4').unlink()
    problems, printed = prepare(root)
    assert problems == []
    assert 'note: 5 new videos were added to split.csv\n' in printed
    assert 'note: 1 videos of split.csv are gone: run/000.mp4\n' in printed
    del first['run/000.mp4']
    assert {path: split for path, split in splits(root).items() if 'fall' not in path} == first
    assert Counter(split for path, split in splits(root).items() if 'fall' in path) == {'train': 4, 'val': 1}


def test_every_suffix_is_tried_and_what_is_skipped_is_counted(tmp_path: Path) -> None:
    root = tmp_path
    for suffix, codec, options in (
        ('.mp4', 'libx264', {}),
        ('.TS', 'libx264', {}),
        ('.mpg', 'mpeg1video', dict(rate=25)),
        ('.wmv', 'wmv2', {}),
        ('.gif', 'gif', dict(pix_fmt='rgb8')),
        ('.avi', 'mpeg4', {}),
    ):
        for name in ('run', 'jump'):
            (root / name).mkdir(exist_ok=True)
            write_clip(root / name / f'a{suffix.lower()}', 6, 36, 64, codec, **options).rename(
                root / name / f'a{suffix}'
            )
    write_files(root, {'run/b.unheard_of': numbered_clip(1), 'run/no_suffix': numbered_clip(2)})
    write_files(root, {'run/c.bin': b'none' * 99, 'run/d.bin': b'', 'run/notes.txt': b'a text', 'jump/a.jpg': b'x'})
    write_files(root, {'run/._a.mp4': b'of macOS', 'empty/a.srt': b'x', 'thumbs/a.jpg': b'x'})
    write_sound(root / 'run/s.mp4').rename(root / 'run/s.m4a')
    problems, printed = prepare(root)
    assert problems == []
    assert {Path(row['path']).suffix for row in rows(root)} == {
        '.mp4', '.TS', '.mpg', '.wmv', '.gif', '.avi', '.unheard_of', '',
    }  # fmt: skip
    assert len(rows(root)) == 14
    skipped = printed.partition('skipped, no videos: ')[2].partition('\n')[0]
    skipped, hint = skipped.split('; ')
    skipped = skipped.split(', ')
    assert hint == 'videos as folders of frames need a video file each'
    assert sorted(skipped) == ['1 .m4a', '1 .srt', '1 .txt', '2 .bin', '2 .jpg']
    assert 'note: 2 folders have no videos and are no classes: empty/, thumbs/\n' in printed


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    write_files(root, {'run/bad.mp4': b'<html>gone</html>', 'run/cut.mp4': numbered_clip(4)[:-200], 'loose.mp4': b'x'})
    write_sound(root / 'jump/sound.mp4')
    write_clip(root / 'jump/one.mp4', 1, 36, 64)
    problems, printed = prepare(root)
    assert problems[0] == '1 videos are in no class folder: loose.mp4'
    assert sorted(problem.partition(' cannot be used: ')[0] for problem in problems[1:]) == [
        'jump/sound.mp4', 'run/bad.mp4', 'run/cut.mp4',
    ]  # fmt: skip
    assert 'jump/sound.mp4 cannot be used: no video stream' in problems
    assert 'note: 1 videos have one frame only: jump/one.mp4\n' in printed
    assert len(dataset(root)) + len(dataset(root, 'val', test_mode=True)) == 11


def test_folders_of_splits(tmp_path: Path) -> None:
    of_splits = ('train/a/001.mp4', 'train/b/x/1.mp4', 'validation/a/001.mp4', 'validation/b/2.mp4')
    root = write_clips(tmp_path, *of_splits, 'extra/a/9.mp4')
    problems, printed = prepare(root)
    assert problems == ['1 videos in extra/ are in no split, beside train, validation']
    assert list(splits(root).items()) == list(zip(of_splits, ['train', 'train', 'val', 'val'], strict=True))
    assert (root / 'classes.txt').read_text() == 'a\nb\n'
    assert 'same content' not in printed
    write_files(
        root, {'validation/a/001.mp4': (root / 'train/a/001.mp4').read_bytes(), 'train/c.mp4': numbered_clip(0)}
    )
    problems, printed = prepare(root)
    assert '1 videos are in no class folder: train/c.mp4' in problems
    assert 'note: 1 videos have the same content in two splits: train/a/001.mp4 = validation/a/001.mp4\n' in printed
    assert error_of(root, seed=1) == ('seed=1: accepted for a folder without split, and its folders or lists have one')


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = write_clips(tmp_path, *(f'{name}/{number}.mp4' for name in ('train', 'bus') for number in range(3)))
    assert prepare(root)[0] == []
    assert (root / 'classes.txt').read_text() == 'bus\ntrain\n'


def test_splits_and_classes_that_are_missing(tmp_path: Path) -> None:
    root = write_clips(tmp_path, 'train/a/1.mp4', 'train/b/2.mp4', 'test/a/3.mp4', 'test/c/4.mp4')
    assert prepare(root)[0] == [
        'no videos are for val: make a folder or lines of val, or let the folder be split',
        "1 classes have no video to train on: 'c'",
    ]


def test_class_names_stay_as_they_are(tmp_path: Path) -> None:
    root = write_clips(tmp_path, *(f'{name}/{n}.mp4' for name in ('Fall down', 'fall_down', 'ärmel') for n in range(2)))
    problems, _ = prepare(root)
    assert problems == [
        "the classes 'Fall down', 'fall_down' differ by capitals or separators only. They are 2 classes; rename them "
        'if they are one'
    ]
    assert (root / 'classes.txt').read_text() == 'Fall down\nfall_down\närmel\n'
    assert {Path(row['path']).parts[0]: row['label'] for row in rows(root)} == {
        'Fall down': 'Fall down', 'fall_down': 'fall_down', 'ärmel': 'ärmel',
    }  # fmt: skip
    assert {item['label'] for item in dataset(root)} == {0, 1, 2}
    write_clips(root, f'{unicodedata.normalize("NFD", "ärmel")}/9.mp4')
    assert error_of(root) == f"2 class folders of {root} are written 'ärmel' in different characters"


def test_videos_of_one_source_stay_together(tmp_path: Path) -> None:
    names = [f'{name}/{person}_{n}.mp4' for name in ('run', 'jump') for person in 'abcde' for n in range(2)]
    root = write_clips(tmp_path, *names)
    assert prepare(root, group_by='^([a-z])_')[0] == []
    people = {
        split: {path.split('/')[1][0] for path, own in splits(root).items() if own == split}
        for split in ('train', 'val')
    }
    assert len(people['train']) == 4
    assert not people['train'] & people['val']
    assert error_of(root, group_by='^([A-Z])_') == (
        "group_by='^([A-Z])_': a pattern that every path matches is accepted, and 20 of 20 do not match; the first is "
        'a_0.mp4'
    )
    write_clips(root, f'run/{next(iter(people["val"]))}_7.mp4')
    prepare(root, group_by='^([a-z])_')
    assert splits(root)[f'run/{next(iter(people["val"]))}_7.mp4'] == 'val'
    other = write_clips(tmp_path / 'other', 'train/run/a_1.mp4', 'val/run/a_2.mp4')
    assert prepare(other, group_by='^([a-z])_')[0] == [
        "1 sources of group_by='^([a-z])_' are in two splits: a (train and val)"
    ]


@pytest.mark.parametrize('mark', [',', ';', '\t'])
def test_a_list(tmp_path: Path, mark: str) -> None:
    root = tmp_path
    write_clips(root / 'videos', *(f'{n}, a.mp4' for n in range(6)), 'other.mp4')
    lines = [['path', 'label', 'source'], *([f'"{n}, a.mp4"', 'on' if n % 2 else 'off', f's{n % 3}'] for n in range(6))]
    (root / 'clips.csv').write_text('\n'.join(mark.join(line) for line in lines), encoding='utf-8-sig')
    problems, printed = prepare(root, val_share=0.3)
    assert problems == []
    assert 'note: the videos and their labels are from clips.csv\n' in printed
    assert 'note: 1 videos are not in any list and not used: videos/other.mp4\n' in printed
    by_split = splits(root)
    assert set(by_split) == {f'videos/{n}, a.mp4' for n in range(6)}
    for n in range(3):
        assert by_split[f'videos/{n}, a.mp4'] == by_split[f'videos/{n + 3}, a.mp4']
    assert Counter(by_split.values()) == {'train': 4, 'val': 2}
    assert (root / 'classes.txt').read_text() == 'off\non\n'


def test_lists_with_splits(tmp_path: Path) -> None:
    root = write_clips(tmp_path, *(f'v/{n}.mp4' for n in range(12)))
    text = [f'v/{n}.mp4,{n},{"valid" if n > 9 else "train"}' for n in range(12)]
    (root / 'clips.csv').write_text('path,label,split\n' + '\n'.join(text))
    assert prepare(root)[0] == ["2 classes have no video to train on: '10', '11'"]
    assert (root / 'classes.txt').read_text().split() == [str(n) for n in range(12)]
    assert Counter(splits(root).values()) == {'train': 10, 'val': 2}
    (root / 'clips.csv').unlink()
    (root / 'classes.txt').unlink()
    (root / 'train.csv').write_text('path,label\nv/0.mp4,a\nv/1.mp4,b\n')
    (root / 'val.csv').write_text('path,label\nv/2.mp4,a\nv/gone.mp4,b\n')
    problems, _ = prepare(root)
    assert problems == [f'1 of 4 videos do not exist: v/gone.mp4; nearest existing name: {root}/v/9.mp4']
    assert splits(root) == {'v/0.mp4': 'train', 'v/1.mp4': 'train', 'v/2.mp4': 'val', 'v/gone.mp4': 'val'}
    assert len(dataset(root, 'val', test_mode=True)) == 1


def test_a_list_with_numbers_beside_a_list_of_names(tmp_path: Path) -> None:
    root = write_clips(tmp_path, *(f'v/{n}.mp4' for n in range(4)))
    (root / 'classes.txt').write_text('walk\nrun\n')
    (root / 'clips.csv').write_text('path,label\n' + ''.join(f'v/{n}.mp4,{n % 2}\n' for n in range(4)))
    problems, printed = prepare(root)
    assert problems == []
    assert 'note: labels are places in classes.txt, from 0\n' in printed
    assert [row['label'] for row in rows(root)] == ['walk', 'run', 'walk', 'run']
    (root / 'clips.csv').write_text('path,label\n' + ''.join(f'v/{n}.mp4,{n % 2 + 1}\n' for n in range(4)))
    assert error_of(root) == (
        f'{root}/clips.csv:3: label=2: 0 to 1 is accepted, the places in {root}/classes.txt; they must count from 0, '
        'subtract 1 from each'
    )


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('path,label\na.mp4\n', 'clips.csv:2: 1 fields, 2 are accepted, as in the first line'),
        ('path,label\na.mp4,\n', 'clips.csv:2: label is empty'),
        ('path,label\nv/0.mp4,a\nv/0.mp4,b\n', "clips.csv:3: 'v/0.mp4' is in {root}/clips.csv:2 already"),
        ('path,label,split\nv/0.mp4,a,dev\n', "clips.csv:2: split='dev': 'train', 'val', 'test' are accepted"),
        ('path,label,split\nv/0.mp4,a,\nv/1.mp4,a,val\n', 'clips.csv:2: the split is empty, and other lines have one'),
        ('path,label\n"a.mp4,b\n', 'clips.csv:2: unexpected end of data'),
    ],
)
def test_malformed_lists(tmp_path: Path, text: str, message: str) -> None:
    root = write_clips(tmp_path, 'v/0.mp4', 'v/1.mp4')
    (root / 'clips.csv').write_text(text)
    assert error_of(root) == f'{root}/{message.format(root=root)}'


def test_several_lists_and_lists_of_ones_own(tmp_path: Path) -> None:
    root = write_clips(tmp_path, *(f'v/{n}.mp4' for n in range(4)))
    for name in ('a.csv', 'b.csv'):
        (root / name).write_text('path,label\nv/0.mp4,a\n')
    assert error_of(root) == (
        f'{root} has 2 lists of clips, a.csv, b.csv: one is accepted, or train.csv, val.csv and test.csv'
    )
    (root / 'a.csv').unlink()
    (root / 'b.csv').unlink()
    (root / 'split.csv').write_text('path,label,split\nv/0.mp4,run,train\n')
    assert error_of(root) == (
        f"{root}/split.csv:2: label='run': 'v', the class folder, is accepted. If split.csv is your own list, rename "
        'it, for example to clips.csv'
    )


def test_a_folder_without_videos(tmp_path: Path) -> None:
    write_files(tmp_path, {'run/1.jpg': b'x', 'run/2.bin': b'none'})
    assert error_of(tmp_path) == f'{tmp_path} has no videos in class folders, but 1 .jpg, 1 .bin'


def test_a_data_set_that_is_not_prepared(tmp_path: Path) -> None:
    root = class_folders(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        dataset(root)
    assert str(error.value) == (
        f'{root}/split.csv does not exist; nearest existing folder: {root}, which has jump, run. Run python '
        f'tools/data/prepare_folder.py {root}, which writes it'
    )
    prepare(root)
    with pytest.raises(ValueError, match=rf"^split='test': {root}/split.csv has train \(8 clips\), val \(2 clips\)$"):
        dataset(root, 'test')
    with pytest.raises(ValueError, match=r"^split='dev': 'train', 'val', 'test' are accepted$"):
        dataset(root, 'dev')
    (root / 'classes.txt').write_text('jump\nwalk\n')
    with pytest.raises(
        ValueError, match=rf"^{root}/split.csv:7: class 'run' is not in {root}/classes.txt: prepare the "
    ):
        dataset(root)


@pytest.mark.parametrize(
    ('names', 'remark'),
    [
        (('turn_left', 'turn_right'), ''),
        (('TurnLeft', 'other'), ". No class is the mirror image of 'TurnLeft'"),
        (('turnleft', 'other'), ". No class is the mirror image of 'turnleft'"),
    ],
)
def test_plain_flips_of_classes_with_a_direction(tmp_path: Path, names: tuple[str, str], remark: str) -> None:
    root = write_clips(tmp_path, *(f'{name}/{number}.mp4' for name in names for number in range(2)))
    prepare(root)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared
        dataset(root, pipeline=[dict(type='FlipClip', prob=0.5)])
    assert str(error.value) == (
        'FolderClipDataset with FlipClip(swap_labels=False): some classes differ only by direction, so mirrored clips '
        f'need mirrored labels; use FlipClip(swap_labels=True) or remove the flip{remark}'
    )
    mirrored = {item['label']: item['mirrored_label'] for item in dataset(root)}
    labels = {name: label for label, name in enumerate(sorted(names))}
    first, second = (labels[name] for name in names)
    assert mirrored == {first: None if remark else second, second: second if remark else first}
