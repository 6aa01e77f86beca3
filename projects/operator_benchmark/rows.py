"""Result rows: what was measured, where, and the samples. Everything else is computed from these."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from projects.common.csv_rows import write_rows
from projects.common.provenance import commit_of, cpu_name

BASELINES = {
    'norm_relu': 'bn',
    'norm_memory': 'bn',
    'weights': 'plain',
    'step': 'bn',
    'step_memory': 'bn',
    'step_peak': 'bn',
}
"""Section -> the side to which its ratios are taken."""
PASSES = 8
"""Fewest activations that a normalisation with live statistics and its backward read and write: forward x, x, y;
backward (dy, x), (dy, x), dx. A copy moves two."""


@dataclass(frozen=True)
class Environment:
    """Where a measurement was made.

    Attributes:
        device: 'cpu' or 'cuda'.
        device_name: Name of the processor or the GPU.
        threads: Number of threads of torch's CPU operators.
        commit: Commit of this repository, with a '+' if tracked files have changed.
        date: UTC, ISO 8601.
    """

    device: str
    device_name: str
    threads: int
    cpu: str
    torch: str
    torchvision: str
    mmcv: str
    triton: str
    python: str
    system: str
    wait_policy: str
    commit: str
    date: str


@dataclass(frozen=True)
class Row:
    """Samples of one side of one case, or the reason why it has none.

    Attributes:
        section: One of `BASELINES`.
        case: Shape or model, the same for all compared sides.
        side: What was measured.
        dtype: 'float32', 'bfloat16' or 'float16'.
        layout: 'contiguous' or 'channels_last'.
        unit: Unit of the samples: 'ms', 'activations' or 'MiB'.
        size_bytes: Bytes of the case's activation or weights.
        samples: One for every round, in order; sample i of all sides of a case is of the same round.
        reason: Why it has no samples.
    """

    section: str
    case: str
    side: str
    dtype: str
    layout: str
    unit: str
    size_bytes: int
    environment: Environment
    samples: tuple[float, ...] = ()
    reason: str = ''

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What rows that are compared with each other have in common."""
        return self.section, self.case, self.dtype, self.layout


class Spread(NamedTuple):
    """Median and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def spread(samples: Sequence[float]) -> Spread:
    """Return median, p20 and p80 of at least one sample, interpolated linearly."""
    return Spread(*(float(value) for value in np.percentile(samples, (50, 20, 80))))


def ratios(row: Row, baseline: Row) -> Spread | None:
    """Return the spread of the ratios of all rounds; None if one of the two has no samples."""
    if not (row.samples and baseline.samples):
        return None
    return spread([a / b for a, b in zip(row.samples, baseline.samples, strict=True)])


def find(rows: Iterable[Row], row: Row, side: str) -> Row | None:
    """Return the row of another side of the same case."""
    return next((other for other in rows if other.key == row.key and other.side == side), None)


def derived(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    """Return the computed columns of the CSV: spread, ratios to the section's baseline, bandwidth."""
    values: dict[str, float] = {}
    if row.samples:
        values |= spread(row.samples)._asdict()
    baseline = find(rows, row, BASELINES[row.section])
    if baseline is not None and (ratio := ratios(row, baseline)):
        values |= {'ratio': ratio.median, 'ratio_p20': ratio.p20, 'ratio_p80': ratio.p80}
    if row.section == 'norm_relu' and row.samples:
        passes = 2 if row.side == 'copy' else PASSES
        values['gb_per_s'] = passes * row.size_bytes / values['median'] / 1e6
        copy = find(rows, row, 'copy')
        if copy is not None and (times_copy := ratios(row, copy)):
            values['share_of_copy'] = passes / 2 / times_copy.median
    shown = {name: f'{value:.4g}' if value < 1000 else f'{value:.1f}' for name, value in values.items()}
    return {'baseline': BASELINES[row.section]} | {name: shown.get(name, '') for name in DERIVED[1:]}


DERIVED = ('baseline', 'median', 'p20', 'p80', 'ratio', 'ratio_p20', 'ratio_p80', 'gb_per_s', 'share_of_copy')
OWN = ('section', 'case', 'dtype', 'layout', 'side', 'unit')
COLUMNS = (*OWN, *DERIVED, 'reason', *(field.name for field in fields(Environment)), 'size_bytes', 'samples')


def save_csv(rows: Sequence[Row], path: Path) -> Path:
    """Write a CSV file of `COLUMNS`, with a line for each row."""

    def line(row: Row) -> dict[str, Any]:
        own = {name: value for name, value in asdict(row).items() if name in COLUMNS}
        samples = ' '.join(f'{value:.6g}' for value in row.samples)
        return own | derived(row, rows) | asdict(row.environment) | {'samples': samples}

    return write_rows(path, COLUMNS, map(line, rows))


def load_csv(path: Path) -> list[Row]:
    """Read the rows of a file of `save_csv`, without the computed columns.

    Raises:
        ValueError: If the columns are not those of `save_csv`.
    """
    with path.open(newline='') as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f'{path} has the columns {reader.fieldnames}; expected are {COLUMNS}')
        return [
            Row(
                **{name: line[name] for name in (*OWN, 'reason')},
                size_bytes=int(line['size_bytes']),
                samples=tuple(float(value) for value in line['samples'].split()),
                environment=Environment(
                    **{field.name: line[field.name] for field in fields(Environment) if field.name != 'threads'},
                    threads=int(line['threads']),
                ),
            )
            for line in reader
        ]


def describe_environment(device: torch.device) -> Environment:
    """Return this machine, its versions and this repository's commit."""
    import mmcv
    import torchvision

    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = ''
    return Environment(
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name(),
        threads=torch.get_num_threads(),
        cpu=cpu_name(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        mmcv=mmcv.__version__,
        triton=triton_version,
        python=platform.python_version(),
        system=f'{platform.system()} {platform.machine()}',
        wait_policy=os.environ.get('OMP_WAIT_POLICY', ''),
        commit=commit_of(),
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
    )
