"""Tables and pictures of measured rows, for the console and for documents, computed from the CSV files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as ConsoleTable

from projects.common.readme_tables import write_table
from projects.operator_benchmark.rows import BASELINES, Environment, Row, find, load_csv, ratios, spread

NAMES = {
    'bn': 'BatchNorm',
    'gn': 'GroupNorm',
    'bcn': 'BCN',
    'bcn_batch': 'BCN, batch statistics',
    'bcn_plain': 'BCN, plain composition',
    'bcn_compiled': 'plain composition, torch.compile',
    'copy': 'copy of x',
    'plain': "authors' formula",
    'mmcv': "mmcv's formula",
    'ws': 'WS',
    'gn-ws': 'GN + WS',
    'gn-ws-mmcv': "GN + mmcv's ConvWS",
    'bcn-ws': 'BCN + WS',
    'bcn-ws-save-conv': 'BCN + WS, saving convolution outputs only',
}
TITLES = {
    'norm_relu': 'Norm + ReLU, forward and backward',
    'norm_memory': 'Saved by norm + ReLU for backward, in activations',
    'weights': 'Weight Standardization of all convolutions, forward and backward',
    'step': 'Training step, one sample',
    'step_memory': 'Training step, memory kept from the forward for the backward pass',
    'step_peak': 'Training step, most memory at once, without parameters and optimizer',
}
COLOURS = {
    'bn': '#d1495b',
    'gn': '#1f77b4',
    'gn-ws': '#2a9d5c',
    'gn-ws-mmcv': '#8fbf9f',
    'bcn': '#6a3d9a',
    'bcn-ws': '#6a3d9a',
    'bcn-ws-save-conv': '#b39ddb',
    'bcn_batch': '#b39ddb',
    'bcn_plain': '#c98a00',
    'bcn_compiled': '#e0c080',
}


@dataclass(frozen=True)
class Table:
    """A table of text, for the console and for Markdown."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def folder_name(environment: Environment) -> str:
    """Return 'cpu', or the GPU's name in lower case with hyphens."""
    if environment.device == 'cpu':
        return 'cpu'
    return re.sub(r'[^a-z0-9]+', '-', environment.device_name.lower()).strip('-')


def section_tables(rows: Sequence[Row], section: str) -> list[Table]:
    """Return a table for each dtype and layout of a section, with a line for each case and a column for each side.

    The baseline's column has its median in the unit of the rows. The others have their median ratio to the baseline.
    """
    rows = [row for row in rows if row.section == section]
    tables = []
    for dtype, layout in dict.fromkeys((row.dtype, row.layout) for row in rows):
        members = [row for row in rows if (row.dtype, row.layout) == (dtype, layout)]
        baseline = BASELINES[section]
        sides = [baseline, *dict.fromkeys(row.side for row in members if row.side != baseline)]
        unit = members[0].unit
        absolute = unit == 'activations'
        header = ('', f'{name_of(baseline)} ({unit})', *(name_of(side) for side in sides[1:]))
        lines = []
        for case in dict.fromkeys(row.case for row in members):
            found = {row.side: row for row in members if row.case == case}
            cells = [amount(found.get(baseline))]
            for side in sides[1:]:
                cells.append(amount(found.get(side)) if absolute else ratio_text(found.get(side), found.get(baseline)))
            lines.append((case, *cells))
        tables.append(Table(f'{TITLES[section]} ({dtype}, {layout})', header, tuple(lines), reasons(members)))
    return tables


def reasons(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return a line for each side without samples and each reason, with the cases."""
    cases: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            cases.setdefault((row.side, row.reason), []).append(row.case)
    return tuple(f'{name_of(side)} ({"; ".join(of)}): {reason}' for (side, reason), of in cases.items())


def name_of(side: str) -> str:
    return NAMES.get(side, side)


def amount(row: Row | None) -> str:
    """Return the median with three digits, '' if the case does not have this side, 'none' if it has no samples."""
    if row is None or not row.samples:
        return '' if row is None else 'none'
    median = spread(row.samples).median
    return f'{median:,.0f}' if median >= 1000 else f'{median:.3g}'


def ratio_text(row: Row | None, baseline: Row | None) -> str:
    """Return a ratio as '0.55x', '' if the case does not have this side, 'none' if one of the two has no samples."""
    if row is None:
        return ''
    value = ratios(row, baseline) if baseline is not None else None
    return 'none' if value is None else f'{value.median:.2f}x'


def all_tables(rows: Sequence[Row]) -> list[Table]:
    return [table for section in TITLES for table in section_tables(rows, section)]


def summary_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the tables of the norms and of the steps, for the first dtype and layout of each."""
    return [table for section in ('norm_relu', 'step') for table in section_tables(rows, section)[:1]]


def print_tables(rows: Sequence[Row], console: Console) -> None:
    """Print all tables; ratios are to the first column of numbers."""
    for table in all_tables(rows):
        shown = ConsoleTable(title=table.title, caption='\n'.join(table.notes), title_justify='left')
        for index, name in enumerate(table.header):
            shown.add_column(name, justify='left' if index == 0 else 'right')
        for line in table.rows:
            shown.add_row(*line)
        console.print(shown)


def markdown(table: Table) -> str:
    lines = [f'**{table.title}**', '', '| ' + ' | '.join(table.header) + ' |']
    lines.append('|' + '|'.join(' --- ' if index == 0 else ' ---: ' for index in range(len(table.header))) + '|')
    lines += ['| ' + ' | '.join(line) + ' |' for line in table.rows]
    if table.notes:
        lines += ['', *(f'- no value: {note}' for note in table.notes)]
    return '\n'.join(lines)


def where(rows: Sequence[Row]) -> str:
    """Return machine, versions and commits in one sentence."""
    first = rows[0].environment
    machine = f'{first.threads} threads of {first.device_name}' if first.device == 'cpu' else first.device_name
    commits = ', '.join(dict.fromkeys(row.environment.commit for row in rows))
    return f'{machine}, torch {first.torch}, Python {first.python}, commit {commits}.'


def update_readme(readme: Path, results: Path, choose: Callable[..., list[Table]], *, pictures: bool = False) -> bool:
    """Write tables between the two markers of a document, from every measurements.csv under a folder.

    Args:
        readme: The document.
        results: Folder with one folder for each device.
        choose: `all_tables` or `summary_tables`.
        pictures: Whether to show the pictures as well.

    Returns:
        Whether the document changed.

    Raises:
        ValueError: If the document does not have exactly one pair of markers in order, or there are no measurements.
    """
    files = sorted(results.glob('*/measurements.csv'))
    if not files:
        raise ValueError(f'{results} has no */measurements.csv')
    parts = []
    for file in files:
        rows = load_csv(file)
        source = Path(os.path.relpath(file.resolve(), readme.resolve().parent)).as_posix()
        parts.append(
            f'Generated from [`{source}`]({source}): {where(rows)} Numbers with x are ratios to the first column.'
        )
        parts += [markdown(table) for table in choose(rows)]
        if pictures:
            parts += [
                f'![{picture.stem}]({Path(os.path.relpath(picture.resolve(), readme.resolve().parent)).as_posix()})'
                for picture in sorted(file.parent.glob('*.png'))
            ]
    return write_table(readme, 'benchmark-table', '\n\n'.join(parts))


def write_pictures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw bars of the ratios to BatchNorm for the first dtype and layout: norms.png and steps.png."""
    pictures = []
    for section, name in (('norm_relu', 'norms'), ('step', 'steps')):
        members = [row for row in rows if row.section == section and row.side != 'copy']
        members = [row for row in members if (row.dtype, row.layout) == (members[0].dtype, members[0].layout)]
        cases = [
            case
            for case in dict.fromkeys(row.case for row in members)
            if any(row.case == case and row.side == BASELINES[section] and row.samples for row in members)
        ]
        if not cases:
            continue
        figure = Figure(figsize=(8, 1 + 1.1 * len(cases)), layout='constrained')
        draw_bars(figure.subplots(), members, cases)
        title = f'{TITLES[section]}: time / {name_of(BASELINES[section])}'
        figure.suptitle(f'{title}\n{members[0].dtype}, {members[0].layout}, {where(members)}', fontsize=9)
        pictures.append(folder / f'{name}.png')
        figure.savefig(pictures[-1], dpi=110)
    return pictures


def draw_bars(axes: Axes, rows: Sequence[Row], cases: Sequence[str]) -> None:
    """Draw a group of bars for each case: median ratio to the baseline, p20 to p80 as a line. The axis ends at 3."""
    end = 3.0
    sides = list(dict.fromkeys(row.side for row in rows if row.samples))
    height = 0.8 / len(sides)
    for index, side in enumerate(sides):
        for place, case in enumerate(cases):
            row = next((row for row in rows if (row.case, row.side) == (case, side)), None)
            baseline = find(rows, row, BASELINES[row.section]) if row is not None else None
            value = ratios(row, baseline) if row is not None and baseline is not None else None
            if value is None:
                continue
            y = place + (index - (len(sides) - 1) / 2) * height
            label = name_of(side) if place == 0 else None
            axes.barh(y, min(value.median, end), height * 0.9, color=COLOURS.get(side, '#555555'), label=label)
            axes.plot([min(value.p20, end), min(value.p80, end)], [y, y], color='black', linewidth=0.8)
            axes.text(min(max(value.median, value.p80), end) + 0.03, y, f'{value.median:.2f}', va='center', fontsize=7)
    axes.axvline(1, color='#555555', linewidth=0.8)
    axes.set_yticks(range(len(cases)), cases)
    axes.set_xlim(0, end + 0.3)
    axes.set_ylim(-0.5, len(cases) - 0.5)
    axes.invert_yaxis()
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc='center left', bbox_to_anchor=(1.0, 0.5))
