"""The study of running statistics runs, and its README says what its results say."""

import csv

import pytest

from projects.running_statistics.run import COLUMNS, HERE, MODELS, TABLE, VARIANTS, main, table


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_table_in_the_readme_is_that_of_the_results():
    rows = read(HERE / 'results' / 'results.csv')
    assert TABLE.findall((HERE / 'README.md').read_text()) == [table(rows)]


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    assert main(['--quick', '--work-dir', str(tmp_path)]) == 0
    rows = read(tmp_path / 'results.csv')
    assert tuple(rows[0]) == COLUMNS
    found = {(row['recipe'], row['weights'], row['statistics']): row for row in rows}
    assert set(found) == {(recipe, *variant) for recipe in MODELS for variant in VARIANTS}
    assert all(1 / 4 < float(row['var_ratio']) < 4 for row in rows if row['statistics'] == 'measured')
    assert MODELS['bn 1xb1-acc1'] in capsys.readouterr().out
