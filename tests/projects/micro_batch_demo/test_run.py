"""The demo's runs: the plan, the record of a work_dir, runs that fail, and one small demo as a whole."""

import io
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from projects.common.tiny_recipes import MODELS, RECIPES, find_recipe
from projects.micro_batch_demo import run
from projects.micro_batch_demo.records import load_csv
from projects.micro_batch_demo.run import NORMS, SAMPLES, SETTINGS, SHORT, Run, plan
from projects.toy_data import data


def a_run(work_dir, task='segmentation', norm='bcn-ws', setting='1xb1-acc16', recipe=None):
    return Run(task, norm, setting, 0, recipe or find_recipe(task, norm, setting), Path(work_dir))


def quiet():
    return Progress(console=Console(file=io.StringIO()))


def write_scalars(work_dir, *lines, when='20260101_000000'):
    path = work_dir / when / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(f'{line if isinstance(line, str) else json.dumps(line)}\n' for line in lines))


def test_the_short_demo_has_every_norm_at_one_sample_and_what_separates_the_batch(tmp_path):
    runs = plan(tmp_path, full=False, seeds=1)
    chosen = [(r.task, r.norm, r.setting) for r in runs]
    one = [(task, norm, SETTINGS[0]) for task in MODELS for norm in NORMS]
    more = [(task, *key) for task in MODELS for key in SHORT]
    assert sorted(chosen) == sorted(one + more)
    assert {r.seed for r in runs} == {0}
    assert all(r.recipe.is_file() for r in runs)
    assert len({r.work_dir for r in runs}) == len(runs)
    assert all(r.work_dir.parent == tmp_path for r in runs)


def test_the_full_demo_has_every_run_with_every_seed_and_the_quick_runs_last(tmp_path):
    runs = plan(tmp_path, full=True, seeds=3)
    assert len({(r.task, r.norm, r.setting, r.seed) for r in runs}) == len(runs) == 3 * 2 * len(NORMS) * len(SETTINGS)
    real = [r.setting == '1xb16-acc1' for r in runs]
    assert real == sorted(real)


@pytest.mark.parametrize(
    ('setting', 'expected'), [('1xb1-acc1', (1, 1)), ('1xb1-acc16', (1, 16)), ('1xb16-acc1', (16, 1))]
)
def test_a_setting_says_batch_and_accumulation(setting, expected, tmp_path):
    run_ = a_run(tmp_path, setting=setting)
    assert (run_.per_device, run_.accumulation) == expected
    assert run_.samples == SAMPLES
    assert f'_bcn-ws_{setting}-' in run_.recipe.name


def test_a_recipe_that_is_not_there_is_named():
    message = f'no recipe deeplabv3_r18-tiny_syncbn_1xb1-acc1-*.py in {RECIPES}'
    with pytest.raises(FileNotFoundError, match=f'^{re.escape(message)}$'):
        find_recipe('segmentation', 'syncbn', '1xb1-acc1')


def test_the_commands_train_with_the_seed_then_evaluate_what_was_saved(tmp_path):
    steps = run.commands(a_run(tmp_path))
    name, command = next(steps)
    assert name == 'train'
    assert command[0] == sys.executable
    assert command[1].endswith('tools/train.py')
    assert command[-2:] == ['--cfg-options', 'randomness.seed=0']
    (tmp_path / 'last_checkpoint').write_text(f'{tmp_path}/iter_32.pth\n')
    name, command = next(steps)
    assert name == 'test'
    assert command[1].endswith('tools/test.py')
    assert command[3] == f'{tmp_path}/iter_32.pth'
    assert command[-1] == str(tmp_path / 'pictures')


def test_a_record_is_what_the_work_dir_says(tmp_path):
    write_scalars(tmp_path, {'loss': 9.0, 'time': 9.0, 'step': 999}, when='20250101_000000')
    write_scalars(
        tmp_path,
        {'lr': 0.1, 'loss': 2.0, 'time': 0.5, 'step': 16},
        {'lr': 0.1, 'loss': 1.5, 'time': 0.25, 'step': 32},
        {'mIoU': 12.5, 'aAcc': 80.0, 'time': 0.1, 'step': 32},
        '{"lr": 0.1, "loss": 1.0, "ti',
    )
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test' / 'metrics.json').write_text('{"mIoU": 13.0, "aAcc": 81.0}')
    record = run.record(a_run(tmp_path), peak_memory_mib=700.0)
    assert (record.task, record.norm, record.per_device, record.accumulation, record.seed) == (
        *('segmentation', 'bcn-ws', 1, 16, 0),
    )
    assert (record.metric_name, record.metric, record.reason) == ('mIoU', 13.0, None)
    assert record.train_seconds == 16 * 0.5 + 16 * 0.25
    assert record.peak_memory_mib == 700.0
    assert (record.samples_seen, record.optimizer_steps) == (32, 2)
    assert record.loss_curve == ((16, 2.0), (32, 1.5))
    assert record.metric_curve == ((32, 12.5),)


def test_a_real_batch_counts_its_samples(tmp_path):
    write_scalars(tmp_path, {'loss': 2.0, 'time': 1.0, 'step': 10}, {'acc/top1': 20.0, 'step': 10})
    record = run.record(a_run(tmp_path, 'video', setting='1xb16-acc1'))
    assert (record.samples_seen, record.optimizer_steps) == (160, 10)
    assert record.loss_curve == ((160, 2.0),)
    assert record.metric_curve == ((160, 20.0),)
    assert record.reason == 'no top-1 was measured'


def test_a_loss_that_is_not_a_number_is_kept(tmp_path):
    write_scalars(tmp_path, '{"loss": NaN, "time": 1.0, "step": 4}')
    ((samples, loss),) = run.record(a_run(tmp_path)).loss_curve
    assert samples == 4
    assert np.isnan(loss)


def test_an_empty_work_dir_is_a_run_without_result(tmp_path):
    record = run.record(a_run(tmp_path), failure='train failed: no output')
    assert (record.train_seconds, record.samples_seen, record.loss_curve) == (None, 0, ())
    assert record.reason == 'train failed: no output'


def test_a_failing_command_gives_a_failed_record_with_the_last_line_of_its_log(tmp_path, monkeypatch):
    code = "import sys; print('begun'); print('ValueError: the loss is nan\\n\\n', file=sys.stderr); sys.exit(3)"

    def failing(run_):
        yield 'train', [sys.executable, '-c', code]
        pytest.fail('nothing is evaluated after a training that failed')

    monkeypatch.setattr(run, 'commands', failing)
    monkeypatch.setattr(run, 'POLL_SECONDS', 0.01)
    stale = tmp_path / 'test' / 'metrics.json'
    stale.parent.mkdir()
    stale.write_text('{"mIoU": 99.0}')
    with quiet() as progress:
        record = run.execute(a_run(tmp_path), progress)
        assert progress.tasks[0].description == 'segmentation bcn-ws 1xb1-acc16 seed 0: failed'
    assert record.failure == 'train failed: ValueError: the loss is nan'
    assert record.metric is None


def test_a_killed_command_says_so(tmp_path, monkeypatch):
    code = "import os, signal; print('Iter(train) 5', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(run, 'commands', lambda run_: iter([('train', [sys.executable, '-c', code])]))
    monkeypatch.setattr(run, 'POLL_SECONDS', 0.01)
    with quiet() as progress:
        record = run.execute(a_run(tmp_path), progress)
    assert record.failure == 'train failed: killed by signal 9 (SIGKILL), after: Iter(train) 5'


def test_waiting_measures_memory_and_looks_meanwhile(monkeypatch):
    monkeypatch.setattr(run, 'POLL_SECONDS', 0.01)
    looks = []
    code = 'import time; block = bytearray(64 << 20); time.sleep(0.2)'
    child = subprocess.Popen([sys.executable, '-c', code])
    exit_code, memory = run.wait(child, lambda: looks.append(1))
    assert exit_code == 0
    # Linux counts the parent's memory at the start of a child as the child's.
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert 64 < memory < parent + 256
    assert len(looks) > 2


@pytest.mark.parametrize(
    ('text', 'last'), [('a\nb\n\n', 'b'), ('  padded  \n', 'padded'), ('\n \n', 'no output'), ('', 'no output')]
)
def test_last_line_of_a_log(text, last, tmp_path):
    (tmp_path / 'log').write_text(text)
    assert run.last_line(tmp_path / 'log') == last


def save(folder, name, size, colour):
    path = folder / f'{name}.png'
    Image.new('RGB', size, colour).save(path)
    return path


@pytest.mark.parametrize(('task', 'across'), [('segmentation', 4), ('video', 1)])
def test_a_sheet_has_a_labelled_block_for_each_norm(task, across, tmp_path):
    size = (40, 20)
    colours = {'bn': (200, 0, 0), 'gn': (0, 200, 0)}
    rows = [
        ('bn', [save(tmp_path, f'bn{i}', size, colours['bn']) for i in range(3)]),
        ('none', []),
        ('gn', [save(tmp_path, f'gn{i}', size, colours['gn']) for i in range(2)]),
    ]
    path = run.sheet(rows, tmp_path, task)
    assert path == tmp_path / f'predictions_{task}.png'
    picture = np.asarray(Image.open(path))
    for (norm, paths), other in zip((rows[0], rows[2]), ('gn', 'bn'), strict=True):
        area = (picture == colours[norm]).all(-1)
        assert area.sum() == len(paths) * size[0] * size[1]
        below = np.flatnonzero(area.any(1))
        assert not (picture[below[0] : below[-1] + 1] == colours[other]).all(-1).any()
        assert np.flatnonzero(area.any(0))[0] == 56
    labels = picture[:, :56]
    assert (labels < 128).any()
    down = -(-3 // across)
    assert picture.shape == (2 * down * 26, 56 + across * 46, 3)


def test_no_pictures_make_no_sheet(tmp_path):
    assert run.sheet([('bn', []), ('gn', [])], tmp_path, 'video') is None
    assert list(tmp_path.iterdir()) == []


SHORTENED = """
_base_ = {base!r}
train_dataloader = dict(dataset=dict(data_root={root!r}))
val_dataloader = dict(dataset=dict(data_root={root!r}))
test_dataloader = dict(dataset=dict(data_root={root!r}))
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


@pytest.mark.slow
def test_the_demo_builds_trains_evaluates_and_reports(tmp_path, monkeypatch):
    """`run.main` on a few scenes and clips: two iterations of bcn-ws on each task, and a broken recipe."""
    root, work = tmp_path / 'data', tmp_path / 'work'

    def build(_, console):
        counts = dict(n_train=4, n_val=3, console=console)
        data.build_segmentation(root, **(data.SCENES | counts))
        data.build_video(root, **(data.CLIPS | counts))

    def few(work_dir, *, full, seeds):
        assert (full, seeds) == (False, 1)
        runs = []
        for task, folder in (('segmentation', 'seg'), ('video', 'video')):
            recipe = tmp_path / f'{task}.py'
            base = str(find_recipe(task, 'bcn-ws', '1xb1-acc1'))
            recipe.write_text(SHORTENED.format(base=base, root=f'{root / folder}/'))
            runs.append(a_run(work_dir / task, task, setting='1xb1-acc1', recipe=recipe))
        broken = tmp_path / 'broken.py'
        broken.write_text(f'_base_ = {str(tmp_path / "missing.py")!r}\n')
        return [*runs, a_run(work_dir / 'broken', 'video', 'gn', '1xb1-acc1', broken)]

    monkeypatch.setattr(run, 'SAMPLES', 2)
    monkeypatch.setattr(run, 'build_data', build)
    monkeypatch.setattr(run, 'plan', few)
    monkeypatch.setattr(data, 'write_contact_sheet', lambda _, path, show=data.write_contact_sheet: show(root, path))
    printed = io.StringIO()
    monkeypatch.setattr(run, 'Console', lambda: Console(file=printed, width=140))

    assert run.main(['--work-dir', str(work), '--workers', '2']) == 1

    text = printed.getvalue()
    assert '3 runs, 2 at a time' in text
    assert re.search(r'1/3 segmentation bcn-ws 1xb1-acc1 seed 0: mIoU \d+\.\d', text)
    assert re.search(r'3/3 video gn 1xb1-acc1 seed 0: train failed: ', text)
    report = work / 'report'
    assert re.search(r'minutes; report: ', text)
    rows = load_csv(report / 'results.csv')
    good = [row for row in rows if not row.failure]
    assert [(row.task, row.samples_seen, row.optimizer_steps) for row in good] == [
        ('segmentation', 2, 2),
        ('video', 2, 2),
    ]
    assert all(0 <= row.metric <= 100 and row.train_seconds > 0 and row.peak_memory_mib > 100 for row in good)
    names = {path.name for path in report.iterdir()}
    assert {'data.png', 'predictions_segmentation.png', 'predictions_video.png', 'report.html'} <= names
    page = (report / 'report.html').read_text()
    assert 'train failed' in page
    assert page.count('data:image/png;base64,') >= 5
