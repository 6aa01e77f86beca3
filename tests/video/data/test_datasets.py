import json
import os
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS, MODELS
from torch.utils.data import DataLoader

import wsbcn_mm.video.data.datasets
from tests.video.clip_files import flip_bits, noisy_frame, write_clip, write_frames
from wsbcn_mm.video.data.manifest import ManifestRow, save_manifest
from wsbcn_mm.video.decoding.reader import DecodeError

LEFT_RIGHT = ['Opening something', 'Pulling something from left to right', 'Pulling something from right to left']
TRAIN = [
    {'type': 'DecodeClip', 'sampler': {'type': 'segments', 'num_segments': 4}, 'random': True},
    {'type': 'MultiScaleCropClip', 'size': 32},
    {'type': 'PackClipInputs'},
]
FLIP = {'type': 'FlipClip', 'prob': 1.0}


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(wsbcn_mm.video.data.datasets, 'print_log', lambda text, *args, **kwargs: lines.append(text))
    return lines


def kinetics(root, num_clips=8, num_classes=2, bad=(), absent=(), **options):
    """A dataset of clips `class <label>/<k> a.mp4`; the label of clip k is k % num_classes."""
    lines = []
    for clip in range(num_clips):
        name = f'class {clip % num_classes}/{clip} a.mp4'
        lines.append(f'{name} {clip % num_classes}')
        path = root / 'videos' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if clip in bad:
            path.write_bytes(b'no video' * 100)
        elif clip not in absent:
            write_clip(path, num_frames=5, height=36, width=64)
    (root / 'train.txt').write_text('\n'.join(lines))
    config = {
        'type': 'KineticsDataset',
        'ann_file': 'train.txt',
        'num_classes': num_classes,
        'data_root': str(root),
        'data_prefix': {'video': 'videos'},
        'pipeline': TRAIN,
        **options,
    }
    return DATASETS.build(config)


def something_v2(root, pipeline=TRAIN, suffix='.mp4', **options):
    (root / 'labels.json').write_text(json.dumps({name: str(label) for label, name in enumerate(LEFT_RIGHT)}))
    entries = []
    for label, name in enumerate(LEFT_RIGHT):
        template = name.replace('something', '[something]')
        entries.append({'id': str(40 + label), 'label': 'x', 'template': template, 'placeholders': ['a cup']})
    (root / 'train.json').write_text(json.dumps(entries))
    for entry in entries:
        if not (root / f'{entry["id"]}{suffix}').exists():
            write_clip(root / f'{entry["id"]}{suffix}', num_frames=9, height=36, width=64)
    config = {
        'type': 'SomethingV2Dataset',
        'ann_file': 'train.json',
        'class_file': 'labels.json',
        'data_root': str(root),
        'data_prefix': {'video': ''},
        'pipeline': pipeline,
        'suffix': suffix,
        **options,
    }
    return DATASETS.build(config)


def test_kinetics_items(tmp_path):
    dataset = kinetics(tmp_path)
    assert len(dataset) == 8
    assert dataset.metainfo == {'num_annotated': 8, 'num_missing': 0, 'num_unusable': 0}
    item = dataset[3]
    assert item['inputs'].shape == (1, 3, 4, 32, 32)
    assert int(item['data_samples'].gt_label) == 1
    assert item['data_samples'].sample_idx == 3
    assert item['data_samples'].path == str(tmp_path / 'videos' / 'class 1' / '3 a.mp4')


def test_kinetics_class_names(tmp_path):
    (tmp_path / 'names.txt').write_text('abseiling\nair drumming\n')
    dataset = kinetics(tmp_path, class_file='names.txt')
    assert dataset.metainfo['classes'] == ['abseiling', 'air drumming']
    assert dataset.get_data_info(1)['mirrored_label'] == 1
    with pytest.raises(ValueError, match=r'^num_classes=3: 2, the number of names in .*names\.txt, is expected$'):
        kinetics(tmp_path, num_classes=3, class_file='names.txt')
    with pytest.raises(ValueError, match='KineticsDataset needs num_classes or class_file'):
        DATASETS.build({'type': 'KineticsDataset', 'ann_file': str(tmp_path / 'train.txt')})


def test_missing_files_are_counted_and_named(tmp_path, log):
    dataset = kinetics(tmp_path, absent=(1, 2, 3, 6))
    root = tmp_path / 'videos'
    first = ', '.join(repr(str(root / f'class {clip % 2}' / f'{clip} a.mp4')) for clip in (1, 2, 3))
    text = f'4 of 8 clips in {tmp_path}/train.txt have no file: {first}, ...'
    assert log == [f'{text}; the other 4 are used']
    assert len(dataset) == 4
    assert dataset.metainfo == {'num_annotated': 8, 'num_missing': 4, 'num_unusable': 0}
    with pytest.raises(FileNotFoundError, match=re.escape(text)):
        kinetics(tmp_path, absent=(1, 2, 3, 6), missing='error')


def test_no_file_at_all_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'2 of 2 clips in .*train\.txt have no file: '):
        kinetics(tmp_path, num_clips=2, absent=(0, 1))
    with pytest.raises(ValueError, match="missing='ignore': 'skip' or 'error' is expected"):
        kinetics(tmp_path, missing='ignore')


def test_a_bad_clip_is_replaced_by_its_class_counted_once_and_logged(tmp_path, log):
    dataset = kinetics(tmp_path, bad=(2, 5), max_bad=0.25)
    for _ in range(3):
        for index in range(8):
            sample = dataset[index]['data_samples']
            assert int(sample.gt_label) == index % 2
            assert sample.sample_idx not in (2, 5)
    assert len(log) == 2
    path = str(tmp_path / 'videos' / 'class 0' / '2 a.mp4')
    assert log[0].startswith(f'cannot decode {path!r} with decord: ')
    assert log[0].endswith('; replaced by another clip of its class (1 bad so far)')
    assert log[1].endswith('(2 bad so far)')


def test_a_replacement_does_not_depend_on_which_clips_were_known_to_be_bad(tmp_path):
    """A resumed run, which knows no bad clips, and any number of loader workers train on the same samples."""
    knowing = kinetics(tmp_path, num_clips=16, bad=(0, 2, 4, 6, 8), max_bad=1.0)
    for index in range(0, 16, 2):
        knowing[index]
    for seed in range(4):
        items = []
        for dataset in (knowing, kinetics(tmp_path, num_clips=16, bad=(0, 2, 4, 6, 8), max_bad=1.0)):
            torch.manual_seed(seed)
            items.append(dataset[4])
        assert items[0]['data_samples'].sample_idx == items[1]['data_samples'].sample_idx
        assert torch.equal(items[0]['inputs'], items[1]['inputs'])


def test_too_many_bad_clips_stop_training(tmp_path):
    dataset = kinetics(tmp_path, bad=(2, 5))
    path = tmp_path / 'videos' / 'class 0' / '2 a.mp4'
    text = (
        f'1 of 8 clips of {tmp_path}/train.txt cannot be decoded, more than max_bad=0.005: {path}; the last one: cannot'
    )
    with pytest.raises(DecodeError, match=re.escape(text)):
        dataset[2]


def test_a_class_without_a_good_clip_is_an_error(tmp_path):
    dataset = kinetics(tmp_path, bad=(0, 2, 4, 6), max_bad=1.0)
    with pytest.raises(DecodeError, match=r'no clip of class 0 can be decoded; the last one tried was '):
        dataset[0]
    assert int(dataset[1]['data_samples'].gt_label) == 1


def test_in_test_mode_nothing_is_replaced(tmp_path):
    dataset = kinetics(tmp_path, bad=(2,), max_bad=1.0, test_mode=True)
    assert dataset[0]['data_samples'].sample_idx == 0
    with pytest.raises(DecodeError, match=r'cannot decode .*2 a\.mp4'):
        dataset[2]
    loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate)
    with pytest.raises(DecodeError, match=r'cannot decode .*2 a\.mp4'):
        list(loader)


@pytest.mark.parametrize('context', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_share_what_they_know_of_bad_clips(tmp_path, context):
    dataset = kinetics(tmp_path, bad=(2, 5), max_bad=0.25)
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, collate_fn=pseudo_collate, multiprocessing_context=context
    )
    labels = [int(sample.gt_label) for batch in loader for sample in batch['data_samples']]
    assert labels == [0, 1] * 4
    assert dataset._bad.nonzero().flatten().tolist() == [2, 5]


def test_a_subset_replaces_within_itself(tmp_path):
    dataset = kinetics(tmp_path, bad=(2,), max_bad=1.0).get_subset([1, 2, 4])
    assert [dataset[index]['data_samples'].path[-7:] for index in range(3)] == ['1 a.mp4', '4 a.mp4', '4 a.mp4']


def manifest_of(root, statuses, frames=5, **fields):
    rows = []
    for clip, status in enumerate(statuses):
        usable = frames if status == 'ok' else 0
        row = ManifestRow(
            f'videos/class {clip % 2}/{clip} a.mp4', usable, 12.0, 64, 36, 1, clip % 2, '', 'train', status
        )
        rows.append(row._replace(**fields))
    save_manifest(root / 'manifest.csv', rows)


def test_the_manifest_decides_which_clips_and_frames_are_used(tmp_path, log):
    manifest_of(tmp_path, ['ok', 'ok', 'no file', 'not a video', 'ok', 'ok', 'ok'], frames=3)
    dataset = kinetics(tmp_path, manifest='manifest.csv')
    assert dataset.metainfo == {'num_annotated': 8, 'num_missing': 1, 'num_unusable': 2}
    names = [str(tmp_path / 'videos' / f'class {clip % 2}' / f'{clip} a.mp4') for clip in range(8)]
    assert [dataset.get_data_info(index)['path'] for index in range(5)] == [names[clip] for clip in (0, 1, 4, 5, 6)]
    assert log == [
        f'1 of 8 clips in {tmp_path}/train.txt have no file: {names[2]!r}; the other 7 are used',
        f'2 of 8 clips in {tmp_path}/train.txt are unusable according to {tmp_path}/manifest.csv: '
        f'{names[3]!r} (not a video), {names[7]!r} (not listed); the other 5 are used',
    ]
    for _ in range(20):  # the file has 5
        sample = dataset[0]['data_samples']
        assert sample.total_frames == 3
        assert max(sample.frame_indices[0]) < 3


def test_a_manifest_that_does_not_fit(tmp_path, log):
    dataset = kinetics(tmp_path, manifest='manifest.csv')
    assert len(dataset) == 8
    assert log == [f'no manifest {tmp_path}/manifest.csv: frame counts are read from the files, unverified']
    with pytest.raises(FileNotFoundError, match=r'^no manifest .*manifest\.csv$'):
        kinetics(tmp_path, manifest='manifest.csv', missing='error')
    manifest_of(tmp_path, ['ok'] * 8, frames=9)
    dataset = kinetics(tmp_path, manifest='manifest.csv', test_mode=True)
    reason = '5 frames, 9 in the manifest: the file changed, prepare the data again'
    with pytest.raises(DecodeError, match=f'^cannot decode .* with decord: {reason}$'):
        dataset[0]
    manifest_of(tmp_path, ['ok'] * 8, label=1)
    with pytest.raises(ValueError, match=r"0 a\.mp4' has label 0 in .*train\.txt, but 1 \(''\) in .*manifest\.csv"):
        kinetics(tmp_path, manifest='manifest.csv')
    manifest_of(tmp_path, ['not a video'] * 8)
    with pytest.raises(ValueError, match=r'^8 of 8 clips in .* are unusable according to .*, \.\.\.$'):
        kinetics(tmp_path, manifest='manifest.csv')


def test_unreadable_clips_of_a_test_are_counted_not_scored(tmp_path, log, monkeypatch):
    with pytest.raises(ValueError, match=r"^on_bad='skip': 'error' or 'count' is expected$"):
        kinetics(tmp_path, on_bad='skip')
    manifest_of(tmp_path, ['ok'] * 8)
    dataset = kinetics(tmp_path, bad=(2, 5), manifest='manifest.csv', test_mode=True, on_bad='count')
    os.remove(dataset.get_data_info(6)['path'])  # between listing and reading
    metric = METRICS.build({'type': 'TopKAccuracy', 'topk': (1,)})
    metric.dataset_meta = dataset.metainfo
    loader = DataLoader(dataset, batch_size=4, collate_fn=pseudo_collate)
    for batch in loader:
        assert {tuple(clip.shape) for clip in batch['inputs']} == {(1, 3, 4, 32, 32)}
        for sample in batch['data_samples']:
            sample.pred_score = torch.nn.functional.one_hot(sample.gt_label, 2).float()
        metric.process(batch, [sample.to_dict() for sample in batch['data_samples']])
    lines = []
    monkeypatch.setattr(
        'wsbcn_mm.engine.evaluation.streaming_metric.print_log', lambda text, *args, **kwargs: lines.append(text)
    )
    assert metric.evaluate(8)['acc/num_clips'] == 5
    assert lines[0] == '5 of 8 annotated clips scored, each once; 3 unreadable: the result is over those scored'
    assert [line.rsplit('; ', 1)[1] for line in log] == [f'not scored ({bad} bad so far)' for bad in (1, 2, 3)]
    assert [path[-7:] for path in dataset.bad_clips()] == ['2 a.mp4', '5 a.mp4', '6 a.mp4']


def test_bad_clips_are_listed_beside_the_log(tmp_path, log, monkeypatch):
    logger = MMLogger('bad_clips', log_file=str(tmp_path / 'run.log'))
    monkeypatch.setattr(MMLogger, 'get_current_instance', lambda: logger)
    dataset = kinetics(tmp_path, bad=(2, 5), max_bad=0.125)
    dataset[2]
    with pytest.raises(
        DecodeError, match=re.escape(f'2 a.mp4, {tmp_path}/videos/class 1/5 a.mp4 (all in {tmp_path}/bad')
    ):
        dataset[5]
    lines = (tmp_path / 'bad_clips.txt').read_text().splitlines()
    assert [line.split('\t')[0][-7:] for line in lines] == ['2 a.mp4', '5 a.mp4']
    assert all('\tcannot decode ' in line for line in lines)


def test_clips_whose_damage_is_concealed_are_used_and_logged_once(tmp_path, log):
    dataset = kinetics(tmp_path, num_clips=2)
    whole = write_clip(tmp_path / 'whole.mp4', 20, height=96, width=128, faststart=True, make_frame=noisy_frame)
    path = flip_bits(whole, tmp_path / 'videos' / 'class 1' / '1 a.mp4', 3)
    for _ in range(5):
        assert dataset[0]['data_samples'].sample_idx == 0
        assert dataset[1]['data_samples'].sample_idx == 1
    (line,) = log
    assert line.startswith(f'{str(path)!r} is damaged; the decoder concealed the errors and the clip is used: [h264] ')
    assert line.endswith(' (1 damaged clips so far)')


def test_something_v1(tmp_path):
    (tmp_path / 'something-something-v1-labels.csv').write_text('\n'.join(LEFT_RIGHT))
    (tmp_path / 'something-something-v1-train.csv').write_text(f'100218;{LEFT_RIGHT[2]}\n7;{LEFT_RIGHT[0]}\n')
    for name in ('100218', '7'):
        write_frames(tmp_path / 'frames' / name, 6)
    dataset = DATASETS.build(
        {
            'type': 'SomethingV1Dataset',
            'ann_file': 'something-something-v1-train.csv',
            'class_file': 'something-something-v1-labels.csv',
            'data_root': str(tmp_path),
            'data_prefix': {'video': 'frames'},
            'pipeline': [{**TRAIN[0], 'backend': 'frames'}, *TRAIN[1:]],
        }
    )
    assert dataset.metainfo['classes'] == LEFT_RIGHT
    item = dataset[0]
    assert item['inputs'].shape == (1, 3, 4, 32, 32)
    assert int(item['data_samples'].gt_label) == 2
    assert item['data_samples'].path == str(tmp_path / 'frames' / '100218')


@pytest.mark.parametrize('suffix', ['.webm', '.mp4'])
def test_something_v2(tmp_path, suffix):
    if suffix == '.webm':
        for clip in (40, 41, 42):
            write_clip(tmp_path / f'{clip}.webm', num_frames=9, height=36, width=64, codec='libvpx-vp9')
    dataset = something_v2(tmp_path, suffix=suffix)
    assert dataset.metainfo['classes'] == LEFT_RIGHT
    assert [int(item['data_samples'].gt_label) for item in dataset] == [0, 1, 2]


def test_something_refuses_a_plain_flip(tmp_path):
    text = (
        'SomethingV2Dataset with FlipClip(swap_labels=False): some classes differ only by direction, so mirrored clips '
        'need mirrored labels; use FlipClip(swap_labels=True) or remove the flip'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(text)}$'):
        something_v2(tmp_path, [TRAIN[0], FLIP, *TRAIN[1:]])
    dataset = something_v2(tmp_path, [TRAIN[0], {**FLIP, 'swap_labels': True}, *TRAIN[1:]])
    assert [int(item['data_samples'].gt_label) for item in dataset] == [0, 2, 1]


def test_a_flip_inside_another_transform_or_of_mmaction2s_list_is_refused_too(tmp_path):
    nested = {'type': 'RandomApply', 'transforms': [FLIP], 'prob': 0.5}
    with pytest.raises(ValueError, match=r'^SomethingV2Dataset with FlipClip\(swap_labels=False\)'):
        something_v2(tmp_path, [TRAIN[0], nested, *TRAIN[1:]])
    (tmp_path / 'names.txt').write_text('\n'.join(LEFT_RIGHT))
    options = {'num_clips': 3, 'num_classes': 3, 'class_file': 'names.txt'}
    with pytest.raises(ValueError, match=r'^KineticsDataset with FlipClip\(swap_labels=False\)'):
        kinetics(tmp_path, pipeline=[TRAIN[0], FLIP, *TRAIN[1:]], **options)
    (tmp_path / 'names.txt').write_text('dancing\nleft-handed writing\nrunning')
    with pytest.raises(ValueError, match=r'^KineticsDataset with FlipClip\(swap_labels=False\)'):
        kinetics(tmp_path, pipeline=[TRAIN[0], FLIP, *TRAIN[1:]], **options)
    (tmp_path / 'names.txt').write_text('dancing\nbrightly leftover\nrunning')
    assert len(kinetics(tmp_path, pipeline=[TRAIN[0], FLIP, *TRAIN[1:]], **options)) == 3


def test_something_needs_the_class_list(tmp_path):
    with pytest.raises(ValueError, match='SomethingV2Dataset needs class_file, the official list of labels'):
        something_v2(tmp_path, class_file=None)


def test_from_files_to_normalised_batches(tmp_path):
    dataset = something_v2(tmp_path)
    loader = DataLoader(dataset, batch_size=3, collate_fn=pseudo_collate)
    preprocessor = MODELS.build({'type': 'ClipDataPreprocessor'})
    batch = preprocessor(next(iter(loader)), training=True)
    assert batch['inputs'].shape == (3, 1, 3, 4, 32, 32)
    assert batch['inputs'].dtype == torch.float32
    assert torch.stack([sample.gt_label for sample in batch['data_samples']]).tolist() == [0, 1, 2]


CONFIGS = os.path.join(os.path.dirname(__file__), '..', '..', '..', 'configs', '_base_', 'datasets')


def fill(root, name, num_classes):
    """The files that a dataset config documents, with one clip of 12 frames per split."""
    names = [f'Class {label}' for label in range(num_classes)]
    if name == 'kinetics400':
        (root / 'label_map_k400.txt').write_text('\n'.join(names))
        for split in ('train', 'val'):
            (root / f'kinetics400_{split}_list_videos.txt').write_text('a.mp4 7')
            (root / f'videos_{split}').mkdir()
            write_clip(root / f'videos_{split}' / 'a.mp4', num_frames=12, height=90, width=120)
        return
    version = name[-2:]
    folder = root / f'20bn-something-something-{version}'
    folder.mkdir()
    stem = f'something-something-{version}'
    if version == 'v1':
        (root / f'{stem}-labels.csv').write_text('\n'.join(names))
        write_frames(folder / '5', 12, 100, 132)
        for split in ('train', 'validation'):
            (root / f'{stem}-{split}.csv').write_text('5;Class 7')
    else:
        (root / f'{stem}-labels.json').write_text(json.dumps({name: str(i) for i, name in enumerate(names)}))
        write_clip(folder / '5.webm', num_frames=12, height=240, width=320, codec='libvpx-vp9')
        for split in ('train', 'validation'):
            (root / f'{stem}-{split}.json').write_text(json.dumps([{'id': '5', 'template': '[Class] 7'}]))


@pytest.mark.parametrize(
    ('name', 'num_classes', 'test_views'), [('kinetics400', 400, 30), ('sthv1', 174, 6), ('sthv2', 174, 6)]
)
def test_dataset_configs_read_the_files_they_document(tmp_path, name, num_classes, test_views):
    config = Config.fromfile(os.path.join(CONFIGS, f'{name}.py'))
    assert config.data_root == f'data/{name}/'
    fill(tmp_path, name, num_classes)
    shapes = {'train': (1, 3, 8, 224, 224), 'val': (1, 3, 8, 224, 224), 'test': (test_views, 3, 8, 256, 256)}
    for split, shape in shapes.items():
        loader = config[f'{split}_dataloader']
        assert loader.batch_size == 1
        loader.dataset.data_root = str(tmp_path)
        dataset = DATASETS.build(loader.dataset)
        assert dataset.test_mode == (split != 'train')
        item = dataset[0]
        assert item['inputs'].shape == shape
        assert int(item['data_samples'].gt_label) == 7
        flips = [step for step in loader.dataset.pipeline if step.type == 'FlipClip']
        assert bool(flips) == (name == 'kinetics400' and split == 'train')
