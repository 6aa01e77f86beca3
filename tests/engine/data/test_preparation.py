"""Output and exit code of the commands that prepare data."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from wsbcn_mm.engine.data.preparation import PROBLEMS_SHOWN, exit_code_of, print_report


def test_a_report_shows_the_first_problems_and_names_the_manifest():
    printed = StringIO()
    problems = [f'file [{number}] does not exist' for number in range(PROBLEMS_SHOWN + 2)]
    print_report(Console(file=printed), ['2 files'], problems, Path('data/manifest.csv'))
    lines = printed.getvalue().splitlines()
    assert lines[:2] == ['2 files', 'wrong: file [0] does not exist']
    assert lines[-2:] == [f'wrong: {problems[PROBLEMS_SHOWN - 1]}', 'and 2 more, all in data/manifest.csv']


@pytest.mark.parametrize(
    ('outcome', 'code', 'line'),
    [
        ([], 0, 'complete'),
        (['a file is missing'], 1, 'not complete'),
        (FileNotFoundError('missing: [train]'), 1, 'FileNotFoundError: missing: [train]'),
        (ValueError('list.txt:3: no label'), 1, 'ValueError: list.txt:3: no label'),
        (OSError(28, 'No space left'), 1, 'OSError: [Errno 28] No space left: data'),
        (OSError(30, 'Read-only', 'b/m.csv'), 1, "OSError: [Errno 30] Read-only: 'b/m.csv'"),
    ],
)
def test_the_exit_code_tells_whether_the_data_are_complete(outcome, code, line, capsys):
    def prepare(root, console):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert exit_code_of(prepare, Path('data')) == code
    assert capsys.readouterr().out.splitlines() == [line]
