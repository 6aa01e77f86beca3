"""Progress, report and exit code of the commands that prepare a data set."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PROBLEMS_SHOWN = 30


def exit_code_of(prepare: Callable[[Path, Console], list[str]], root: Path) -> int:
    """Prepare the data set in `root` and print whether it is complete. Return 0 if it is, 1 if not or on an error."""
    console = Console()
    try:
        problems = prepare(root, console)
    except (OSError, ValueError) as error:
        # The error of a full disk names no file.
        place = f': {root}' if isinstance(error, OSError) and error.errno and not error.filename else ''
        console.print(f'{type(error).__name__}: {error}{place}', highlight=False, markup=False, soft_wrap=True)
        return 1
    console.print('not complete' if problems else 'complete', highlight=False)
    return int(bool(problems))


def progress_bar(console: Console | None = None) -> Progress:
    """Return a bar with the number of files and the remaining time."""
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def print_report(console: Console, lines: Sequence[str], problems: Sequence[str], manifest: Path) -> None:
    """Print `lines`, then the first problems; the manifest has all of them."""
    shown = [*lines, *(f'wrong: {line}' for line in problems[:PROBLEMS_SHOWN])]
    if len(problems) > PROBLEMS_SHOWN:
        shown.append(f'and {len(problems) - PROBLEMS_SHOWN} more, all in {manifest}')
    for line in shown:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
