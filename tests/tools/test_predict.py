"""tools/predict.py: the commands and the Python of docs/predicting.md, its files, and errors in one line."""

import csv
import json
import re
import shlex
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.segmentation.pictures import textured
from tests.tools.tiny_runs import ROOT, options, recipe, run_tool
from tests.video.clip_files import write_clip
from wsbcn_mm.inference import load

PAGE = (ROOT / 'docs' / 'predicting.md').read_text()
COMMANDS = re.findall(r'^python (tools/predict\.py .*)$', PAGE, re.MULTILINE)


@pytest.fixture(scope='module')
def checkpoints(tiny_data, tmp_path_factory):
    """What the page calls CHECKPOINT and VIDEO_CHECKPOINT."""
    files = {}
    for name, task in (('CHECKPOINT', 'segmentation'), ('VIDEO_CHECKPOINT', 'video')):
        folder = tmp_path_factory.mktemp(task)
        run_tool('train.py', recipe(task), '--work-dir', folder, *options(task, tiny_data, 2))
        files[name] = folder / 'iter_2.pth'
    return files


@pytest.fixture
def inputs(tiny_data, tmp_path, monkeypatch):
    """The files that the page names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, size in (
        ('photo.png', (64, 64)),
        ('photos/other.png', (64, 64)),
        ('more/a.png', (80, 64)),
        ('huge.png', (600, 900)),
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(textured(*size)).save(name)
    Path('photos/notes.txt').write_text('not an image')
    clip = next((tiny_data / 'video' / 'videos').glob('*.mp4'))
    Path('clip.mp4').write_bytes(clip.read_bytes())
    write_clip(Path('long.mp4'), num_frames=50, height=40, width=40, rate=10)
    return tmp_path


def predict(checkpoints, *arguments):
    run_tool('predict.py', *(checkpoints.get(one, one) for one in arguments))


def test_the_page_has_commands():
    assert len(COMMANDS) == 3


@pytest.mark.parametrize('command', COMMANDS)
def test_the_commands_of_the_page_run(command, checkpoints, inputs, capsys):
    _, *arguments = shlex.split(command)
    predict(checkpoints, *arguments)
    assert re.search(r'^(\d) of \1 (images|videos) -> predictions$', capsys.readouterr().out, re.MULTILINE)
    assert (inputs / 'predictions' / 'predictions.csv').is_file()


def test_the_python_of_the_page_runs(checkpoints, inputs):
    (code,) = re.findall(r'^```py\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(code, 'docs/predicting.md', 'exec'), dict(checkpoints))


def test_images_give_overlays_class_ids_csv_and_json(checkpoints, inputs, capsys):
    predict(checkpoints, 'CHECKPOINT', 'photo.png', 'photos', 'more/*.png', '--out', 'out', '--batch-size', 2)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == '3 of 3 images -> out'
    assert sum(line.startswith(('photo', 'more')) for line in printed) == 3
    model = load(checkpoints['CHECKPOINT'], device='cpu')
    facts = json.loads(Path('out/predictions.json').read_text())
    assert facts['classes'] == list(model.classes)
    assert facts['failed'] == {}
    assert [entry['file'] for entry in facts['results']] == ['photo.png', 'photos/other.png', 'more/a.png']
    with Path('out/predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    for entry in facts['results']:
        expected = model(entry['file'])
        with Image.open(Path('out', entry['class_ids'])) as picture:
            assert picture.mode == 'L'
            assert np.array_equal(np.asarray(picture), expected.class_map)
        with Image.open(Path('out', entry['overlay'])) as picture:
            assert picture.width >= 480
        own = [row for row in rows if row['file'] == entry['file']]
        assert [(row['class'], int(row['pixels'])) for row in own] == [(c.name, c.pixels) for c in expected.classes]
        assert entry['classes'] == [dict(one._asdict(), score=pytest.approx(one.score)) for one in expected.classes]


def test_a_second_run_takes_no_results_of_the_first_for_inputs(checkpoints, inputs, capsys):
    for _ in range(2):
        predict(checkpoints, 'CHECKPOINT', 'photos', '--out', 'photos')
        assert '1 of 1 images' in capsys.readouterr().out


def test_tiles_are_said_and_pictures_can_be_left_out(checkpoints, inputs, capsys):
    predict(checkpoints, 'CHECKPOINT', 'huge.png', '--tile', '256x512', '--no-pictures', '--out', 'out')
    assert 'huge.png: in 6 tiles of 256 x 512 pixels, 64 shared, at its own resolution' in capsys.readouterr().out
    assert not Path('out/overlays').exists()
    assert Image.open('out/class_ids/huge.png').size == (900, 600)


def test_clips_give_strips_and_scores(checkpoints, inputs, capsys):
    predict(checkpoints, 'VIDEO_CHECKPOINT', 'clip.mp4', '--out', 'out', '--top', 2)
    with Path('out/predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    result = load(checkpoints['VIDEO_CHECKPOINT'], device='cpu')('clip.mp4')
    assert [(row['rank'], row['class']) for row in rows] == [(str(n), c.name) for n, c in enumerate(result.top(2), 1)]
    (entry,) = json.loads(Path('out/predictions.json').read_text())['results']
    assert entry['scores'] == pytest.approx(result.scores.tolist())
    assert Image.open(Path('out', entry['strip'])).width > 1000


def test_long_videos_give_rows_a_timeline_and_an_annotated_video(checkpoints, inputs, capsys):
    predict(checkpoints, 'VIDEO_CHECKPOINT', 'long.mp4', '--window', 2, '--annotate', '--out', 'out', '--top', 1)
    with Path('out/predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['start_s'], row['end_s'], row['rank']) for row in rows] == [
        ('0.0', '2.0', '1'), ('1.0', '3.0', '1'), ('2.0', '4.0', '1'), ('3.0', '5.0', '1')
    ]  # fmt: skip
    (entry,) = json.loads(Path('out/predictions.json').read_text())['results']
    assert [window['start_s'] for window in entry['windows']] == [0, 1, 2, 3]
    with av.open(str(Path('out', entry['annotated']))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 50
    assert Path('out', entry['strip']).is_file()


def test_bad_files_are_reported_and_the_others_predicted(checkpoints, inputs, capsys):
    Path('photos/broken.png').write_text('not an image')
    with pytest.raises(SystemExit) as caught:
        predict(checkpoints, 'CHECKPOINT', 'photos', '--out', 'out')
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert re.search(r'^image photos/broken\.png cannot be read: .*$', captured.err, re.MULTILINE)
    assert captured.out.splitlines()[-1] == '1 of 2 images -> out'
    facts = json.loads(Path('out/predictions.json').read_text())
    assert list(facts['failed']) == ['photos/broken.png']
    assert [entry['file'] for entry in facts['results']] == ['photos/other.png']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['CHECKPOINT', 'photo.pgn'], "input='photo.pgn' does not exist; nearest existing name: photo.png"),
        (['CHECKPOINT', 'gone/*.png'], "input='gone/*.png': no file matches; nearest existing"),
        (['CHECKPOINT', 'clip.mp4'], "input='clip.mp4': .mp4 files are videos, this model takes images"),
        (['VIDEO_CHECKPOINT', 'photo.png'], "input='photo.png': .png files are images, this model takes videos"),
        (['CHECKPOINT', 'photo.png', '--window', '1'], 'window=1.0: only models of videos take it, not of images'),
        (
            ['VIDEO_CHECKPOINT', 'clip.mp4', '--tile', '64'],
            'tile=[64, 64]: only models of images take it, not',
        ),
        (['VIDEO_CHECKPOINT', 'clip.mp4', '--annotate'], '--annotate writes the classes of windows: give --window SEC'),
        (['CHECKPOINT', 'photo.png', '--tile', 'big'], "--tile 'big': N, HEIGHTxWIDTH, 'auto' or 'off' is expected"),
        (['CHECKPOINT', 'photo.png', '--batch-size', '0'], 'batch_size=0: at least 1 is expected'),
        (['gone.pth', 'photo.png'], "checkpoint 'gone.pth' does not exist; nearest existing"),
        (['photo.png', 'photo.png'], 'checkpoint photo.png is damaged: it starts with'),
    ],
)
def test_errors_are_one_line(checkpoints, inputs, arguments, message):
    with pytest.raises(SystemExit, match=f'^{re.escape(message)}') as caught:
        predict(checkpoints, *arguments, '--out', 'out')
    assert '\n' not in str(caught.value.code)


def test_results_of_an_earlier_run_alone_are_no_inputs(checkpoints, inputs):
    Path('out/overlays').mkdir(parents=True)
    Path('photo.png').rename('out/overlays/photo.png')
    with pytest.raises(SystemExit, match=r'^input=out: it has nothing but the results of an earlier run$'):
        predict(checkpoints, 'CHECKPOINT', 'out', '--out', 'out')


def test_notes_come_first(checkpoints, inputs, capsys, tmp_path):
    import torch

    content = torch.load(checkpoints['CHECKPOINT'], weights_only=True)
    del content['meta']['dataset_meta']
    content['meta']['cfg'] = re.sub(r'\n +metainfo=dict\(.*?\n +\]\),', '', content['meta']['cfg'], flags=re.DOTALL)
    torch.save(content, tmp_path / 'nameless.pth')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        predict(checkpoints, 'nameless.pth', 'photo.png', '--no-pictures')
    lines = capsys.readouterr().out.splitlines()
    assert 'note: the file has no class names: classes are numbered' in lines
    assert any(re.match(r'photo\.png, 64 x 64: class \d', line) for line in lines)
