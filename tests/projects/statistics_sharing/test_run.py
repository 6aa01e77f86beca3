"""The study of shared statistics runs on two ranks, and its documents agree with its results."""

import csv

import pytest

from projects.statistics_sharing import run


def test_the_tables_are_those_of_the_results():
    sent, times = (run.load(run.HERE / 'results' / name) for name in ('collectives.csv', 'steps.csv'))
    tables = run.table_of_times(times), run.table_of_messages(sent)
    for path in (run.HERE / 'README.md', run.DECISION):
        text = path.read_text()
        assert all(f':start -->\n{table}<!-- ' in text for table in tables)


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    """Real processes with a known number of messages: 15 norms with 560 channels."""
    assert run.main(['--quick', '--work-dir', str(tmp_path)]) == 0
    with (tmp_path / 'collectives.csv').open() as file:
        rows = [row for row in csv.DictReader(file) if row['part'] == 'statistics']
    sent = {(row['side'], row['kind']): (int(row['calls']), int(row['bytes'])) for row in rows}
    norms, channels = 15, 560
    assert sent == {
        ('bn-sync', 'all_gather'): (norms, 4 * (2 * channels + norms)),
        ('bn-sync', 'all_reduce'): (norms, 4 * 2 * channels),
        ('bcn', 'all_reduce'): (1, 8 * 3 * channels),
        ('bcn-ws', 'all_reduce'): (1, 8 * 3 * channels),
        ('bcn-ws-sync', 'all_reduce'): (4 * norms, 2 * 4 * (2 * channels + norms)),
    }
    assert 'BCN + WS, estimates shared after the step' in capsys.readouterr().out
