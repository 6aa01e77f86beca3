"""Turn run records into a console table, CSV files, curves, a self-contained HTML page and tables of documents.

Everything comes from the records; work folders are not read. A run without a result is shown with its reason.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table

from projects.common.readme_tables import write_table
from projects.micro_batch_demo.figures import write_curves
from projects.micro_batch_demo.records import (
    TASKS,
    RunRecord,
    Summary,
    describe,
    load_csv,
    row_order,
    save_csv,
    save_json,
    save_summary_csv,
    setting_text,
    summarize,
)

TEMPLATE = Path(__file__).with_name('report.html.j2')
TABLE = 'demo-table'
"""Name of the table in documents."""


@dataclass(frozen=True)
class Cell:
    """Text of one cell; `kind` is '', 'best' or 'failed'."""

    text: str
    kind: str = ''


@dataclass(frozen=True)
class Block:
    """One part of the table: rows with the same number of samples per optimizer step."""

    title: str
    notes: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG file with its title and a caption."""

    title: str
    path: Path
    caption: str = ''


def table_blocks(records: Sequence[RunRecord]) -> list[Block]:
    """Return the results as blocks of equal global batch, one sample per step first.

    In every block the best mean of a column is marked. A setting that a task has not run shows 'not run'.
    """
    summaries = summarize(records)
    blocks = []
    for batch in sorted({item.batch for item in summaries}):
        members = [item for item in summaries if item.batch == batch]
        tasks = [task for task in TASKS if any(item.task == task for item in members)]
        settings = dict.fromkeys(
            (item.norm, item.per_device, item.accumulation) for item in sorted(members, key=row_order)
        )
        rows = []
        for norm, *batching in settings:
            found = {
                item.task: item
                for item in members
                if [item.norm, item.per_device, item.accumulation] == [norm, *batching]
            }
            cells = [Cell(norm), Cell(setting_text(*batching))]
            cells += [_metric_cell(found.get(task), members) for task in tasks]
            for name, unit in (('train_seconds', 's'), ('peak_memory_mib', 'MiB')):
                cells.append(Cell(' / '.join(_amount(found.get(task), name) for task in tasks) + f' {unit}'))
            rows.append(tuple(cells))
        names = {item.task: item.metric_name for item in members}
        header = ['norm', 'batch', *(f'{names[task]} (%)' for task in tasks)]
        both = f' ({" / ".join(tasks)})' if len(tasks) > 1 else ''
        header += [f'train time{both}', f'peak memory{both}']
        notes = tuple(_length_note(task, [item for item in members if item.task == task]) for task in tasks)
        blocks.append(Block(_block_title(batch, members), notes, tuple(header), tuple(rows)))
    return blocks


def _block_title(batch: int, members: Sequence[Summary]) -> str:
    if batch == 1:
        return 'One sample per step'
    settings = sorted({(item.per_device, item.accumulation) for item in members})
    if len(settings) == 1:
        return f'Global batch of {batch}: {setting_text(*settings[0])}'
    accumulated = ' and '.join(setting_text(*setting) for setting in settings if setting[1] > 1)
    return f'Same global batch of {batch}: {accumulated} beside a real batch of {batch}'


def _length_note(task: str, members: Sequence[Summary]) -> str:
    """Return the length of a task's runs; if they differ, and cannot be compared, the length of each."""
    lengths = {(item.samples_seen, item.optimizer_steps) for item in members if item.samples_seen is not None}
    if not lengths:
        return f'{task}: no run finished'
    if len(lengths) == 1:
        seen, steps = lengths.pop()
        return f'{task}: {_count(seen)} samples seen, {_count(steps)} optimizer steps'
    differing = ', '.join(
        f'{item.norm} {setting_text(item.per_device, item.accumulation)} {_count(item.samples_seen)} samples and '
        f'{_count(item.optimizer_steps)} steps'
        for item in members
        if item.samples_seen is not None
    )
    return f'{task}: not comparable, the runs differ in length ({differing})'


def _count(number: int | None) -> str:
    return 'unknown' if number is None else f'{number:,}'


def _metric_cell(item: Summary | None, members: Sequence[Summary]) -> Cell:
    if item is None:
        return Cell('not run')
    if item.metric_mean is None:
        return Cell('failed' if item.seeds == 1 else f'failed ({item.failed} of {item.seeds} seeds)', 'failed')
    text = f'{item.metric_mean:.1f}'
    if item.metric_std is not None:
        text += f' ± {item.metric_std:.1f}'
    if item.failed:
        text += f' ({item.failed} of {item.seeds} seeds failed)'
    rivals = [other.metric_mean for other in members if other.task == item.task and other.metric_mean is not None]
    is_best = len(rivals) > 1 and item.metric_mean == max(rivals)
    return Cell(text, 'best' if is_best else '')


def _amount(item: Summary | None, name: str) -> str:
    value = getattr(item, name) if item else None
    return '-' if value is None else f'{value:,.0f}'


def failures(records: Sequence[RunRecord]) -> list[str]:
    """Return one line per run without a result: the run and the reason."""
    return [f'{describe(record)}: {record.reason}' for record in records if record.reason]


def seeds_note(records: Sequence[RunRecord]) -> str:
    """Return a sentence on the number of seeds."""
    counts = sorted({item.seeds for item in summarize(records)})
    if counts == [1]:
        return 'One seed per row: differences of a few points may be chance.'
    number = str(counts[0]) if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'
    return f'Mean ± sample standard deviation over {number} seeds.'


def print_table(records: Sequence[RunRecord], console: Console | None = None) -> None:
    """Print the table block by block, and the failures below."""
    console = console or Console()
    styles = {'best': 'bold green', 'failed': 'bold red', '': ''}
    for block in table_blocks(records):
        table = Table(title=block.title, caption='\n'.join(block.notes), title_justify='left', caption_justify='left')
        for index, name in enumerate(block.header):
            table.add_column(name, justify='left' if index < 2 else 'right')
        for row in block.rows:
            table.add_row(*(f'[{styles[cell.kind]}]{cell.text}[/]' if cell.kind else cell.text for cell in row))
        console.print(table)
    console.print(seeds_note(records))
    for line in failures(records):
        console.print(f'failed: {line}', style='red', markup=False)


def markdown_table(records: Sequence[RunRecord], *, blocks: int | None = None) -> str:
    """Return the same table in Markdown, or only its first `blocks`."""
    marks = {'best': '**{}**', 'failed': '*{}*', '': '{}'}
    parts = []
    for block in table_blocks(records)[:blocks]:
        lines = [f'**{block.title}** ({"; ".join(block.notes)})', '']
        lines.append('| ' + ' | '.join(block.header) + ' |')
        lines.append('|' + '|'.join(' --- ' if index < 2 else ' ---: ' for index in range(len(block.header))) + '|')
        lines += ['| ' + ' | '.join(marks[cell.kind].format(cell.text) for cell in row) + ' |' for row in block.rows]
        parts.append('\n'.join(lines))
    parts.append(seeds_note(records))
    if broken := failures(records):
        parts.append('\n'.join(['Runs without a result:', '', *(f'- {line}' for line in broken)]))
    return '\n\n'.join(parts)


def update_table(document: str | Path, csv_path: str | Path, *, blocks: int | None = None) -> bool:
    """Write the table of a file of `save_csv` between the two markers of a document.

    Args:
        document: Markdown file.
        csv_path: The results.
        blocks: How many blocks of the table to show; by default all.

    Returns:
        Whether the document changed.

    Raises:
        ValueError: If the document does not have exactly one pair of markers, in order.
    """
    document, csv_path = Path(document), Path(csv_path)
    source = Path(os.path.relpath(csv_path.resolve(), document.resolve().parent)).as_posix()
    text = f'Generated from [`{source}`]({source}).\n\n{markdown_table(load_csv(csv_path), blocks=blocks)}'
    return write_table(document, TABLE, text)


def _data_uri(path: Path) -> str:
    return 'data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode()


def write_html(
    records: Sequence[RunRecord],
    path: str | Path,
    pictures: Sequence[Picture] = (),
    title: str = 'Training at one sample per step',
    about: Sequence[str] = (),
) -> Path:
    """Write one self-contained page with table, failures and pictures.

    Args:
        records: The runs.
        path: The HTML file.
        pictures: PNG files, embedded in this order.
        title: Heading of the page.
        about: Paragraphs under the heading, on machine, data and recipes.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=title,
        about=about,
        blocks=table_blocks(records),
        seeds=seeds_note(records),
        failures=failures(records),
        pictures=[
            {'title': picture.title, 'caption': picture.caption, 'uri': _data_uri(Path(picture.path))}
            for picture in pictures
        ],
        runs=sorted(records, key=lambda record: (TASKS.index(record.task), *row_order(record), record.seed)),
        describe_setting=setting_text,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding='utf-8')
    return path


def write_report(
    records: Sequence[RunRecord],
    folder: str | Path,
    pictures: Sequence[Picture] = (),
    about: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Write records.json, results.csv, summary.csv, curves_<task>.png and report.html, and print the table.

    Args:
        records: The runs, failed ones included.
        folder: Folder of the files.
        pictures: Pictures for the page, shown after the curves.
        about: Paragraphs for the top of the page.
        console: Where the table is printed.

    Returns:
        The path of report.html.
    """
    folder = Path(folder)
    save_json(records, folder / 'records.json')
    print_table(records, console)
    save_csv(records, folder / 'results.csv')
    save_summary_csv(records, folder / 'summary.csv')
    curves = []
    for task in TASKS:
        runs = [record for record in records if record.task == task]
        if any(run.metric_curve or run.loss_curve for run in runs):
            picture = write_curves(runs, folder / f'curves_{task}.png')
            caption = 'Thin lines are single seeds, thick lines their mean. The loss is a running mean.'
            curves.append(Picture(f'Learning curves, {task}', picture, caption))
    return write_html(records, folder / 'report.html', [*curves, *pictures], about=about)
