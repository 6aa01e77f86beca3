"""The study of running statistics runs, and its README agrees with its results."""

import pytest

from projects.common.csv_rows import read_rows
from projects.common.readme_tables import read_table
from projects.running_statistics.run import COLUMNS, HERE, MODELS, VARIANTS, main, table


def test_the_table_in_the_readme_is_that_of_the_results():
    rows = read_rows(HERE / 'results' / 'results.csv')
    assert read_table(HERE / 'README.md', 'table') == table(rows)


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    assert main(['--quick', '--work-dir', str(tmp_path)]) == 0
    rows = read_rows(tmp_path / 'results.csv')
    assert tuple(rows[0]) == COLUMNS
    found = {(row['recipe'], row['weights'], row['statistics']): row for row in rows}
    assert set(found) == {(recipe, *variant) for recipe in MODELS for variant in VARIANTS}
    assert all(1 / 4 < float(row['var_ratio']) < 4 for row in rows if row['statistics'] == 'measured')
    assert MODELS['bn 1xb1-acc1'] in capsys.readouterr().out
