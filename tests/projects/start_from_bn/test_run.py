"""The study of starts from BN runs, and its README agrees with its results."""

import pytest

from projects.common.csv_rows import read_rows
from projects.common.readme_tables import read_table
from projects.start_from_bn.run import COLUMNS, FULL, HERE, QUICK, STARTS, main, table


def test_the_table_in_the_readme_is_that_of_the_results():
    rows = read_rows(HERE / 'results' / 'results.csv')
    assert read_table(HERE / 'README.md', 'table') == table(rows)
    assert {row['start'] for row in rows} == {'source', *STARTS, 'gradual'}
    assert {int(row['iteration']) for row in rows if row['start'] == 'exact'} == set(
        range(0, FULL.target + 1, FULL.interval)
    )


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    """Real recipes, data and checkpoints: before the first step, BN is the model that it starts from."""
    assert main(['--quick', '--work-dir', str(tmp_path)]) == 0
    rows = read_rows(tmp_path / 'results.csv')
    assert tuple(rows[0]) == COLUMNS
    scores = {(row['start'], int(row['iteration'])): float(row['mIoU']) for row in rows}
    for name, start in STARTS.items():
        expected = {0, QUICK.interval, QUICK.target} if start.loads else {QUICK.interval, QUICK.target}
        assert {iteration for known, iteration in scores if known == name} == expected
    assert scores['bn', 0] == scores['source', QUICK.source]
    assert STARTS['exact'].title in capsys.readouterr().out
