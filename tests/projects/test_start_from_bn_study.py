"""The study of starts from BN runs, and its README says what its results say."""

import csv

import pytest

from projects.start_from_bn.run import COLUMNS, FULL, HERE, QUICK, STARTS, TABLE, main, table


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_table_in_the_readme_is_that_of_the_results():
    rows = read(HERE / 'results' / 'results.csv')
    assert TABLE.findall((HERE / 'README.md').read_text()) == [table(rows)]
    assert {row['start'] for row in rows} == {'source', *STARTS}
    assert {int(row['iteration']) for row in rows if row['start'] == 'gradual'} == set(
        range(0, FULL.target + 1, FULL.interval)
    )


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    """Real recipes, data and checkpoints: before the first step the gradual start is the BN model it comes from."""
    assert main(['--quick', '--work-dir', str(tmp_path)]) == 0
    rows = read(tmp_path / 'results.csv')
    assert tuple(rows[0]) == COLUMNS
    scores = {(row['start'], int(row['iteration'])): float(row['mIoU']) for row in rows}
    for name, start in STARTS.items():
        expected = {0, QUICK.interval, QUICK.target} if start.loads else {QUICK.interval, QUICK.target}
        assert {iteration for known, iteration in scores if known == name} == expected
    assert scores['gradual', 0] == pytest.approx(scores['source', QUICK.source], abs=0.02)
    assert scores['bn', 0] == scores['source', QUICK.source]
    assert STARTS['gradual'].title in capsys.readouterr().out
