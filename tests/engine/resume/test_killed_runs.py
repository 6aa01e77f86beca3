"""Real runs of both tasks, killed by SIGKILL and resumed, and a short run of the stress test."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from tests.stress import kill_and_resume, runs

RESULTS = Path(kill_and_resume.__file__).parent / 'results'
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason='forks, and compares bits: for the CPU'),
]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return kill_and_resume.build_data(tmp_path_factory.mktemp('data'))


class Samples(Hook):
    """Record the files of a rank's iterations."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        (sample,) = data_batch['data_samples']
        with open(f'{runner.work_dir}/samples{runner.rank}.txt', 'a') as file:
            print(runner.iter, getattr(sample, 'img_path', None) or sample.path, file=file)


def seen(work_dir, ranks):
    """Return the samples of all ranks, in their common order."""
    lines = [(work_dir / f'samples{rank}.txt').read_text().splitlines() for rank in range(ranks)]
    return [line.split()[1] for together in zip(*lines, strict=True) for line in together]


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """Folder with uninterrupted runs: segmentation on one process, video on two."""
    folder = tmp_path_factory.mktemp('whole')
    for case in (runs.Case('segmentation', 0, 1), runs.Case('video', 0, 2)):
        runs.Started(case, data, folder / case.task, Samples()).finish()
    return folder


@pytest.mark.parametrize(('task', 'processes', 'workers'), [('segmentation', 1, (2, 0)), ('video', 2, (0, 2))])
def test_a_killed_run_ends_with_the_same_bits(task, processes, workers, whole, data, tmp_path):
    """With 0 and 2 loader workers before and after the kill; the uninterrupted run has none."""
    first = runs.Started(runs.Case(task, workers[0], processes), data, tmp_path)
    assert first.wait_until(lambda: first.done.value >= 10)
    first.kill()
    begin = runs.resumed_from(tmp_path)
    assert begin in (9, 12, 15)
    runs.Started(runs.Case(task, workers[1], processes), data, tmp_path).finish()
    values, different = runs.differences(*(runs.last_checkpoint(folder) for folder in (whole / task, tmp_path)))
    assert different == []
    assert values > 400
    output = (tmp_path / 'output0.txt').read_text()
    assert f'resuming at iteration {begin}: {begin * processes} samples seen, next sample ids ' in output
    accumulated = begin % runs.ACCUMULATION
    said = f'the gradients of {accumulated} of {runs.ACCUMULATION} micro-batches are restored'
    assert (said in output) == (accumulated > 0)


def test_another_number_of_processes_goes_on_in_the_same_order(whole, data, tmp_path):
    """Two processes until the third optimizer step; then one, which accumulates twice as much."""
    two = whole / 'video'
    work_dir = tmp_path / 'one'
    work_dir.mkdir()
    shutil.copy(two / 'iter_12.pth', work_dir)
    runs.Started(runs.Case('video', 0, 1), data, work_dir, Samples()).finish()
    output = (work_dir / 'output0.txt').read_text()
    assert (
        '1 instead of 2 device(s): accumulation 8 instead of 4 keeps 8 samples per optimizer step, and the order of '
        'the data continues'
    ) in output
    assert 'resuming at iteration 24: 24 samples seen, next sample ids ' in output
    assert seen(work_dir, 1) == seen(two, 2)[24:]
    assert runs.resumed_from(work_dir) == 40
    before, after = (runs.last_checkpoint(folder)['optimizer']['param_groups'][0]['lr'] for folder in (two, work_dir))
    assert after == pytest.approx(before, abs=0.02)


def test_the_stress_test_kills_compares_and_keeps_other_cases(data, tmp_path):
    results = tmp_path / 'kills.csv'
    other = dict.fromkeys(kill_and_resume.COLUMNS, 0) | dict(task='video', workers=2, processes=2)
    kill_and_resume.save([other], results)
    (tmp_path / 'data').symlink_to(data)
    arguments = ['--task', 'segmentation', '--workers', '0', '--processes', '1', '--kills', '1', '--iterations', '10']
    assert kill_and_resume.main([*arguments, '--results', str(results), '--work-dir', str(tmp_path)]) == 0
    rows = list(csv.DictReader(results.open()))
    assert [(row['task'], row['kill'], row['different']) for row in rows] == [
        ('segmentation', '0', '0'),
        ('video', '0', '0'),
    ]
    assert int(rows[0]['values']) > 400


def test_differences_are_seen():
    left = {name: {'a': torch.ones(2), 'b': [1, 2.0]} for name in runs.COMPARED}
    right = {name: {'a': torch.ones(2), 'b': [1, 2.0]} for name in runs.COMPARED}
    assert runs.differences(left, right) == (12, [])
    right['optimizer']['a'][1] += 1e-7
    right['state_dict']['b'] = [1]
    assert runs.differences(left, right) == (12, ['optimizer.a', 'state_dict.b.1'])


def test_the_results_in_the_repository_are_of_every_case_and_differ_nowhere():
    rows = list(csv.DictReader((RESULTS / 'kills.csv').open()))
    cases = Counter((row['task'], row['workers'], row['processes']) for row in rows)
    assert len(rows) >= 50
    assert len(cases) == 8
    assert min(cases.values()) >= 7
    assert {row['moment'] for row in rows} == set(kill_and_resume.MOMENTS)
    assert sum(int(row['mid_accumulation']) for row in rows) > len(rows) // 3
    assert {row['different'] for row in rows} == {'0'}
    start = list(csv.DictReader((RESULTS / 'start.csv').open()))
    assert all(float(row['seconds']) < 2 and int(row['samples_read']) <= 1 for row in start)
