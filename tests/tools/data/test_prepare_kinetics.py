"""tools/data/prepare_kinetics.py on small trees and archives of the real shapes."""

import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from rich.console import Console

from tests.tools.tiny_runs import ROOT, run_tool
from tests.video.small_sets import (
    KINETICS,
    clip_bytes,
    kinetics_archives,
    kinetics_name,
    write_files,
    write_kinetics_annotations,
)
from wsbcn_mm.video.data import inventory
from wsbcn_mm.video.data.datasets import ClipDataset
from wsbcn_mm.video.data.manifest import ManifestRow, load_manifest
from wsbcn_mm.video.data.prepare_kinetics import prepare_kinetics

PUBLISHED = {'train': 4, 'val': 2}


def prepare(root: Path, num_classes: int = 3) -> tuple[list[str], str]:
    """Return the problems and the printed text."""
    printed = StringIO()
    problems = prepare_kinetics(root, Console(file=printed), published=PUBLISHED, num_classes=num_classes)
    return problems, printed.getvalue()


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """Names of the decoded files."""
    names: list[str] = []
    probe_many = inventory.probe_many

    def noting(paths, **options):
        paths = list(paths)
        names.extend(Path(path).name[0] for path in paths)
        return probe_many(paths, **options)

    monkeypatch.setattr(inventory, 'probe_many', noting)
    return names


def class_folders(root: Path, train: str = 'train', val: str = 'val') -> None:
    for split, folder in (('train', train), ('val', val)):
        for youtube_id, name in KINETICS[split].items():
            path = f'{folder}/{name.replace(" ", "_")}/{kinetics_name(youtube_id)}'
            write_files(root, {path: clip_bytes()})


def lines_of(root: Path, split: str) -> list[str]:
    return (root / f'kinetics400_{split}_list_videos.txt').read_text().splitlines()


def recipe_data(root: Path) -> ClipDataset:
    """The recipes' training data in another folder, with fewer classes and without decoding."""
    dataset = Config.fromfile(ROOT / 'configs/_base_/datasets/kinetics400.py').train_dataloader.dataset
    return DATASETS.build(dict(dataset, data_root=f'{root}/', num_classes=3, pipeline=[]))


def test_archives_become_a_set_that_the_recipes_read(tmp_path: Path, probed: list[str]) -> None:
    kinetics_archives(tmp_path)
    problems, printed = prepare(tmp_path)
    assert problems == []
    assert '3 classes, in the order of label_map_k400.txt\n' in printed
    assert (
        'train: 4 clips are listed, 4 are published; 3 have a file, 3 can be used (75.00 % of the published)' in printed
    )
    assert '  1 without a file, the first: videos_train/DDDDDDDDDDD_000007_000017.mp4\n' in printed
    assert 'val: 2 clips are listed, 2 are published; 2 have a file, 2 can be used (100.00 % of the publ' in printed
    unlisted = f'{kinetics_name("CCCCCCCCCCC")}, {kinetics_name("XXXXXXXXXXX")}'
    assert f'train: 2 videos are not in any list and not used: {unlisted}\n' in printed
    assert (tmp_path / 'label_map_k400.txt').read_text() == 'air drumming\ntai chi\nzumba\n'
    assert lines_of(tmp_path, 'train') == [
        'AAAAAAAAAAA_000007_000017.mp4 2',
        'BBBBBBBBBBB_000007_000017.mp4 0',
        'replacement_for_corrupted_k400/CCCCCCCCCCC_000007_000017.mp4 2',
        'DDDDDDDDDDD_000007_000017.mp4 1',
    ]
    rows = load_manifest(tmp_path / 'manifest.csv')
    assert [(row.frames, row.class_name, row.status) for row in rows] == [
        (6, 'zumba', 'ok'),
        (6, 'air drumming', 'ok'),
        (9, 'zumba', 'ok'),
        (0, 'tai chi', 'no file'),
        (6, 'air drumming', 'ok'),
        (6, 'tai chi', 'ok'),
    ]
    assert rows[0]._replace(mtime_ns=0) == ManifestRow(
        path='videos_train/AAAAAAAAAAA_000007_000017.mp4',
        frames=6,
        fps=12.0,
        width=64,
        height=36,
        bytes=len(clip_bytes()),
        label=2,
        class_name='zumba',
        split='train',
        status='ok',
    )
    dataset = recipe_data(tmp_path)
    assert [info['num_frames'] for info in dataset] == [6, 6, 9]
    assert (dataset.metainfo['num_annotated'], dataset.metainfo['num_missing']) == (4, 1)
    assert [dataset.get_data_info(2)[name] for name in ('label', 'size')] == [2, (36, 64)]

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    assert sorted(probed) == ['-', 'A', 'B', 'C', 'E']
    probed.clear()
    again, printed_again = prepare(tmp_path)
    assert again == []
    assert printed_again.partition('3 classes')[2] == printed.partition('3 classes')[2]
    assert probed == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


def test_what_was_unpacked_by_cvdfs_scripts_is_linked(tmp_path: Path) -> None:
    write_kinetics_annotations(tmp_path)
    for split, clips in KINETICS.items():
        write_files(tmp_path / split, {kinetics_name(name): clip_bytes() for name in clips})
    replaced = {f'replacement_for_corrupted_k400/{kinetics_name("CCCCCCCCCCC")}': clip_bytes(num_frames=9)}
    write_files(tmp_path / 'replacement', replaced)
    assert prepare(tmp_path)[0] == []
    assert (tmp_path / 'videos_train').readlink() == Path('train')
    frames = [row.frames for row in load_manifest(tmp_path / 'manifest.csv')]
    assert frames == [6, 6, 9, 6, 6, 6]


@pytest.mark.parametrize('unpacked', [False, True])
def test_the_two_folders_of_cvdfs_scripts_are_read_from_beside(tmp_path: Path, unpacked: bool) -> None:
    kinetics_archives(tmp_path / 'k400_targz')
    shutil.move(tmp_path / 'k400_targz/annotations', tmp_path / 'k400/annotations')
    replacement = tmp_path / 'k400_targz/replacement'
    replacement.mkdir()
    shutil.move(tmp_path / 'k400_targz/replacement_for_corrupted_k400.tgz', replacement)
    if unpacked:
        for packed in (*tmp_path.glob('k400_targz/*/*.tar.gz'), *replacement.iterdir()):
            shutil.unpack_archive(packed, tmp_path / 'k400' / packed.parent.name, 'gztar')
        shutil.rmtree(tmp_path / 'k400_targz')
    assert prepare(tmp_path)[0] == []
    assert [row.frames for row in load_manifest(tmp_path / 'manifest.csv')] == [6, 6, 9, 0, 6, 6]


def test_folders_of_classes_need_no_annotations_and_may_grow(tmp_path: Path, probed: list[str]) -> None:
    class_folders(tmp_path)
    (tmp_path / 'train/zumba/._AAAAAAAAAAA_000007_000017.mp4').write_bytes(b'attributes that macOS keeps')
    assert prepare(tmp_path)[0] == []
    assert lines_of(tmp_path, 'val') == [
        'air_drumming/EEEEEEEEEEE_000007_000017.mp4 0',
        'tai_chi/-_FFFFFFFF__000007_000017.mp4 1',
    ]
    probed.clear()
    write_files(tmp_path, {'train/yoga/YYYYYYYYYYY_000001_000011.mp4': clip_bytes()})
    assert prepare(tmp_path, num_classes=4)[0] == []
    assert (tmp_path / 'label_map_k400.txt').read_text().split('\n') == ['air drumming', 'tai chi', 'yoga', 'zumba', '']
    assert [line[-1] for line in lines_of(tmp_path, 'train')] == ['0', '1', '2', '3', '3']
    assert [row.label for row in load_manifest(tmp_path / 'manifest.csv')] == [0, 1, 2, 3, 3, 0, 1]
    assert probed == ['Y']


def test_lists_and_classes_of_others_are_taken_as_they_are(tmp_path: Path) -> None:
    class_folders(tmp_path, 'videos_train', 'videos_val')
    train = 'zumba/AAAAAAAAAAA_000007_000017.mp4 0\nair_drumming/BBBBBBBBBBB_000007_000017.mp4 2\n'
    (tmp_path / 'kinetics400_train_list_videos.txt').write_text(train)
    message = (
        f'missing: {tmp_path}/label_map_k400.txt, the 3 class names in the order of the labels in the lists; '
        f'nearest existing name: '
    )
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(message)}'):
        prepare(tmp_path)
    (tmp_path / 'label_map_k400.txt').write_text('zumba\ntai chi\nair drumming\n')
    problems, printed = prepare(tmp_path)
    assert problems == []
    assert (tmp_path / 'kinetics400_train_list_videos.txt').read_text() == train
    assert 'train: 2 videos are not in any list and not used: tai_chi/DDDDDDDDDDD_000007_000017.mp4, zumba/C' in printed
    rows = load_manifest(tmp_path / 'manifest.csv')
    assert [(row.label, row.class_name) for row in rows] == [
        (0, 'zumba'),
        (2, 'air drumming'),
        (2, 'air drumming'),
        (1, 'tai chi'),
    ]


def test_a_class_list_in_another_order_than_the_manifests_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path)
    prepare(tmp_path)
    (tmp_path / 'label_map_k400.txt').write_text('tai chi\nair drumming\nzumba\n')
    message = (
        f"label 0 is 'tai chi' in {tmp_path}/label_map_k400.txt, but 'air drumming' in {tmp_path}/manifest.csv: "
        'prepare the data again'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        recipe_data(tmp_path)


def test_missing_videos_and_annotations_are_named_with_their_places(tmp_path: Path) -> None:
    (tmp_path / 'vall').mkdir()
    message = (
        f'missing: {tmp_path}/videos_train/ with videos or {tmp_path}/train/part_*.tar.gz; '
        f'{tmp_path}/videos_val/ with videos or {tmp_path}/val/part_*.tar.gz, from '
        'https://github.com/cvdfoundation/kinetics-dataset; nearest existing '
    )
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(message)}'):
        prepare(tmp_path)
    for split, clips in KINETICS.items():
        write_files(tmp_path / split, {kinetics_name(name): clip_bytes() for name in clips})
    message = (
        f'missing: {tmp_path}/annotations/train.csv, from https://github.com/cvdfoundation/kinetics-dataset, or '
        f'{tmp_path}/kinetics400_train_list_videos.txt, or class folders: none of the 4 videos in '
        f'{tmp_path}/videos_train has a class'
    )
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(message)}$'):
        prepare(tmp_path)


def test_unknown_classes_and_duplicate_clips_are_errors(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / 'label_map_k400.txt').write_text('air drumming\ntai chi\nyoga\n')
    with pytest.raises(ValueError, match=rf"^{tmp_path}/videos_train/zumba: class 'zumba' is not in {tmp_path}/label_"):
        prepare(tmp_path)
    write_kinetics_annotations(tmp_path)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/train.csv:2: class 'zumba' is not in {tmp_path}/label_map_k40"):
        prepare(tmp_path)
    (tmp_path / 'label_map_k400.txt').unlink()
    copy = tmp_path / 'train/tai_chi' / kinetics_name('AAAAAAAAAAA')
    shutil.copy(tmp_path / 'train/zumba' / kinetics_name('AAAAAAAAAAA'), copy)
    with pytest.raises(ValueError, match=r'train.csv:2: 2 videos match AAAAAAAAAAA_000007_000017: tai_chi/AAAAAAAAAAA'):
        prepare(tmp_path)
    copy.unlink()
    with (tmp_path / 'train.csv').open('a') as file:
        file.write('zumba,BBBBBBBBBBB,7,17,train,0\n')
    with pytest.raises(ValueError, match=r'train.csv:6: BBBBBBBBBBB_000007_000017 is already in line 3$'):
        prepare(tmp_path)


def test_two_clips_of_one_video_differ_by_their_times(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write_kinetics_annotations(tmp_path)
    with (tmp_path / 'train.csv').open('a') as file:
        file.write('zumba,BBBBBBBBBBB,8,18,train,0\n')
    assert prepare(tmp_path)[0] == []
    assert lines_of(tmp_path, 'train')[1::3] == [
        'air_drumming/BBBBBBBBBBB_000007_000017.mp4 0',
        'BBBBBBBBBBB_000008_000018.mp4 2',
    ]
    write_files(tmp_path, {'train/zumba/BBBBBBBBBBB_000008_000018.mp4': clip_bytes()})
    prepare(tmp_path)
    assert lines_of(tmp_path, 'train')[-1] == 'zumba/BBBBBBBBBBB_000008_000018.mp4 2'


def test_videos_of_two_splits_are_wrong(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write_files(tmp_path, {'val/zumba/AAAAAAAAAAA_000040_000050.mp4': clip_bytes()})
    assert prepare(tmp_path)[0] == ['1 videos are in two splits: AAAAAAAAAAA (train and val)']


def test_the_tool_lists_problems_and_exits_with_1(tmp_path: Path, capsys) -> None:
    class_folders(tmp_path)
    (tmp_path / 'val/tai_chi' / kinetics_name('-_FFFFFFFF_')).write_bytes(b'<html>gone</html>')
    with pytest.raises(SystemExit, match=r'^1$'):
        run_tool('data/prepare_kinetics.py', tmp_path, '--processes', '1')
    printed = capsys.readouterr().out
    assert 'train: 4 clips are listed, 246534 are published; 4 have a file, 4 can be used (0.00 % of the pub' in printed
    assert f'  1 that cannot be used, the first: videos_val/tai_chi/{kinetics_name("-_FFFFFFFF_")}: ' in printed
    assert 'wrong: label_map_k400.txt: 3 classes, 400 are published\n' in printed
    assert printed.endswith('not complete\n')


def test_files_that_are_no_videos_by_their_suffix_are_counted(tmp_path: Path) -> None:
    class_folders(tmp_path)
    write_files(tmp_path, {'train/zumba/GGGGGGGGGGG_000001_000011.TS': clip_bytes()})
    write_files(tmp_path, {'train/zumba/a.txt': b'x', 'train/zumba/b.txt': b'x', 'val/tai_chi/c.unheard_of': b'x'})
    problems, printed = prepare(tmp_path)
    assert problems == []
    assert 'zumba/GGGGGGGGGGG_000001_000011.TS 2' in lines_of(tmp_path, 'train')
    assert 'train: skipped, no videos by their suffix: 2 .txt\n' in printed
    assert 'val: skipped, no videos by their suffix: 1 .unheard_of\n' in printed


def test_folders_that_differ_by_capitals_or_underscores_only(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for name, folder in (('G', 'fall_down'), ('H', 'Fall down')):
        write_files(tmp_path, {f'train/{folder}/{kinetics_name(name * 11)}': clip_bytes()})
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared
        prepare(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/label_map_k400.txt: the classes 'Fall down' and 'fall down' differ by capitals or underscores only"
    )


def test_names_without_an_id_mean_nothing_outside_their_folder(tmp_path: Path) -> None:
    write_files(tmp_path, {f'{split}/{name}/001.mp4': clip_bytes() for split in ('train', 'val') for name in 'ab'})
    problems, printed = prepare(tmp_path, num_classes=400)
    assert problems == ['label_map_k400.txt: 2 classes, 400 are published']
    assert f'videos of your own, not of Kinetics-400: tools/data/prepare_folder.py {tmp_path}\n' in printed
