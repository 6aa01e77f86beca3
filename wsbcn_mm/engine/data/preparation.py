"""What every command that prepares a data set shows, and how it ends."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PROBLEMS_SHOWN = 30


def exit_code_of(prepare: Callable[[Path, Console], list[str]], root: Path) -> int:
    """Prepare the data set in `root`, say whether it is complete, and give 1 if it is not or cannot be read, else 0."""
    console = Console()
    try:
        problems = prepare(root, console)
    except (OSError, ValueError) as error:
        # A full disk has no name of its own.
        place = f': {root}' if isinstance(error, OSError) and error.errno and not error.filename else ''
        console.print(f'{type(error).__name__}: {error}{place}', highlight=False, markup=False, soft_wrap=True)
        return 1
    console.print('not complete' if problems else 'complete', highlight=False)
    return int(bool(problems))


def progress_bar(console: Console | None = None) -> Progress:
    """A bar with the number of files and the time left."""
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def print_report(console: Console, lines: Sequence[str], problems: Sequence[str], manifest: Path) -> None:
    """Print what was found, and the first of the problems; the manifest has them all."""
    shown = [*lines, *(f'wrong: {line}' for line in problems[:PROBLEMS_SHOWN])]
    if len(problems) > PROBLEMS_SHOWN:
        shown.append(f'and {len(problems) - PROBLEMS_SHOWN} more, all in {manifest}')
    for line in shown:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
