"""The study of shared statistics runs on two ranks, and its documents say what its results say."""

import csv

import pytest

from projects.statistics_sharing import run
from projects.statistics_sharing.network import Network, seconds


def test_the_tables_are_those_of_the_results():
    sent, times = (run.load(run.HERE / 'results' / name) for name in ('collectives.csv', 'steps.csv'))
    tables = run.table_of_times(times), run.table_of_messages(sent), run.table_on_paper(sent, Network())
    for path in (run.HERE / 'README.md', run.DECISION):
        text = path.read_text()
        assert all(f':start -->\n{table}<!-- ' in text for table in tables)


@pytest.mark.parametrize(
    ('kind', 'algorithm', 'expected'),
    [
        # Of 4 ranks: 3 rounds of a ring or 2 of a tree, twice for an all-reduce; 10 calls that take 1000 bytes in all.
        ('all_gather', 'ring', 10 * 3 * 2.0 + 1000 * 3 * 0.5),
        ('all_gather', 'tree', 10 * 2 * 2.0 + 1000 * 3 * 0.5),
        ('all_reduce', 'ring', 10 * 6 * 2.0 + 2 * 1000 * 0.75 * 0.5),
        ('all_reduce', 'tree', 10 * 4 * 2.0 + 2 * 1000 * 0.75 * 0.5),
    ],
)
def test_times_on_paper(kind, algorithm, expected):
    assert seconds(kind, 10, 1000, 4, algorithm, Network(alpha=2.0, beta=0.5)) == pytest.approx(expected)


def test_no_formula_for_other_collectives():
    with pytest.raises(
        ValueError, match=r"^kind='broadcast', algorithm='ring': all_reduce or all_gather by ring or tree is expected$"
    ):
        seconds('broadcast', 1, 1, 8, 'ring', Network())


@pytest.mark.slow
def test_a_quick_run(tmp_path, capsys):
    """Real processes: 15 norms with 560 channels, whose messages are known."""
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
