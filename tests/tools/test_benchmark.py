"""tools/benchmark.py runs as a user runs it and leaves a row for every side."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / 'tools' / 'benchmark.py'), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """A quick run without the side whose compilation takes long."""
    out = tmp_path_factory.mktemp('benchmark')
    done = benchmark(
        '--quick', '--device', 'cpu', '--threads', '1', '--leave-out', 'bcn_compiled', '--rounds', '2',
        '--step-rounds', '1', '--out', str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'gate 1x64x9x7 float32 channels_last: largest relative error' in done.stdout
    assert f'-> {out}' in done.stdout.replace('\n', '')
    return out / 'cpu'


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline='') as opened:
        return list(csv.DictReader(opened))


def test_every_side_has_a_row_with_where_it_ran(results):
    lines = read(results / 'measurements.csv')
    sides = {}
    for line in lines:
        sides.setdefault(line['section'], set()).add(line['side'])
    norms = {'bn', 'gn', 'bcn', 'bcn_batch', 'bcn_plain', 'bcn_compiled'}
    steps = {'bn', 'gn', 'gn-ws', 'bcn-ws', 'bcn-ws-save-conv'}
    assert sides == {
        'norm_relu': norms | {'copy'},
        'norm_memory': norms,
        'weights': {'plain', 'mmcv', 'ws'},
        'step': steps,
        'step_memory': steps,
        'step_peak': steps,
    }
    for line in lines:
        assert (line['device'], line['dtype'], line['threads']) == ('cpu', 'float32', '1')
        assert line['layout'] in ('contiguous', 'channels_last')
        assert all(line[name] for name in ('device_name', 'cpu', 'torch', 'python', 'commit', 'date', 'case', 'unit'))
        if line['side'] == 'bcn_compiled':
            assert (line['reason'], line['median']) == ('left out of this run', '')
        else:
            assert line['reason'] == ''
            assert 0 < float(line['p20']) <= float(line['median']) <= float(line['p80'])
            assert float(line['ratio']) > 0
        if line['side'] == line['baseline']:
            assert float(line['ratio']) == 1


def test_every_goal_of_the_device_has_a_verdict(results):
    lines = read(results / 'goals.csv')
    assert {line['device'] for line in lines} == {'cpu'}
    assert {line['verdict'] for line in lines} <= {'reached', 'not reached', 'no value'}
    saved = [line for line in lines if line['goal'].startswith('BCN + ReLU, saved for backward')]
    assert len(saved) == 4
    # Where a channel has 63 values, the numbers per channel weigh something.
    assert all(1 <= float(line['median']) < 1.1 for line in saved)
    (step,) = [line for line in lines if line['goal'].startswith('DeepLabV3-R50 step')]
    assert (step['verdict'], step['reason']) == ('no value', 'not measured')


def test_reports_are_made_anew_from_the_csv(results):
    for name in ('goals.csv', 'norms.png', 'steps.png'):
        (results / name).unlink()
    done = benchmark('--report', '--out', str(results.parent))
    assert done.returncode == 0, done.stderr
    assert 'Goals' in done.stdout
    assert all((results / name).stat().st_size > 0 for name in ('goals.csv', 'norms.png', 'steps.png'))
