"""StatisticsGapHook in real Runners: it warns of BatchNorm at one image, and changes nothing."""

import json
import re
from pathlib import Path

import pytest

from tests.engine.toy_runs import Toy, assert_equal, log_of, runner_of, state_of
from wsbcn_mm.engine.hooks import StatisticsGapHook

GAPS = dict(type='StatisticsGapHook', interval=20, samples=24)
WARNING = re.compile(
    r'running_var of net\.[14] is ([\d.]+)x below measured: eval will differ from train '
    r'\(\d of 2 norms are off by more than 2x or 0.5 standard deviations; docs/statistics.md\)'
)


def run(folder, norm, *hooks):
    runner = runner_of(folder, Toy(norm, rate=0.05), *hooks, iters=41, batch_size=1, accumulation=2)
    runner.train()
    return runner


@pytest.mark.parametrize('norm', ['bn', 'bcn', 'gn'])
def test_it_warns_where_evaluation_will_differ_and_changes_nothing(tmp_path, norm):
    plain, watched = run(tmp_path / 'plain', norm), run(tmp_path / 'watched', norm, GAPS)
    assert_equal(state_of(plain.model), state_of(watched.model))
    found = [float(number) for number in WARNING.findall(log_of(watched))]
    assert len(found) == (3 if norm == 'bn' else 0)
    assert all(factor > 2 for factor in found)
    (scalars,) = Path(watched.work_dir).glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    logged = {line['step']: line['statistics_gap'] for line in lines if 'statistics_gap' in line}
    if norm == 'gn':
        assert not logged
    else:
        assert len(set(logged.values())) == 3
        assert (min(logged.values()) > 2) == (norm == 'bn')


def test_what_it_does_not_take():
    with pytest.raises(ValueError, match='interval=0, samples=16: 1 or more is expected'):
        StatisticsGapHook(interval=0)
