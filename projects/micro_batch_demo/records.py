"""Records of the demo's runs, their files, and their summary over seeds."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import mean, stdev

from projects.common.csv_rows import write_rows

TASKS = ('segmentation', 'video')
NORM_ORDER = ('bn', 'syncbn', 'gn', 'gn-ws', 'bn-ws', 'bcn-ws', 'bcnsync-ws')
CURVES = ('metric_curve', 'loss_curve')

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class RunRecord:
    """One training run and its evaluation.

    A run that ended with an error, or whose metric is missing or not finite, counts as failed.

    Attributes:
        task: 'segmentation' or 'video'.
        norm: Norm name as in the recipes, such as 'bcn-ws'.
        per_device: Samples of one forward pass.
        accumulation: Forward passes of one optimizer step.
        seed: Random seed of the run.
        metric_name: Such as 'mIoU' or 'top-1', the same for all runs of a task.
        metric: In percent; None if the run failed.
        train_seconds: Wall-clock time of training.
        peak_memory_mib: Peak memory of the training process in MiB.
        samples_seen: Training samples of all forward and backward passes.
        optimizer_steps: Updates of the weights.
        metric_curve: (samples seen, metric in percent) in order.
        loss_curve: (samples seen, loss) in order.
        work_dir: Folder of the run's files.
        failure: Why the run failed; None if it succeeded.
    """

    task: str
    norm: str
    per_device: int
    accumulation: int
    seed: int
    metric_name: str
    metric: float | None = None
    train_seconds: float | None = None
    peak_memory_mib: float | None = None
    samples_seen: int | None = None
    optimizer_steps: int | None = None
    metric_curve: Curve = field(default=(), repr=False)
    loss_curve: Curve = field(default=(), repr=False)
    work_dir: str = ''
    failure: str | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f'task={self.task!r}: one of {", ".join(TASKS)} is expected')
        if self.per_device < 1 or self.accumulation < 1:
            raise ValueError(
                f'per_device={self.per_device}, accumulation={self.accumulation}: at least 1 of each is expected'
            )

    @property
    def batch(self) -> int:
        """Samples of one optimizer step."""
        return self.per_device * self.accumulation

    @property
    def setting(self) -> tuple[str, str, int, int]:
        """What runs that differ only in their seed have in common."""
        return self.task, self.norm, self.per_device, self.accumulation

    @property
    def reason(self) -> str | None:
        """Why the run has no result; None if it has one."""
        if self.failure:
            return self.failure
        if self.metric is None:
            return f'no {self.metric_name} was measured'
        return None if math.isfinite(self.metric) else f'{self.metric_name} is {self.metric}'


def record_from_dict(values: dict) -> RunRecord:
    """Make a record from plain values.

    Raises:
        ValueError: If a field is unknown or missing.
    """
    known = {item.name for item in fields(RunRecord)}
    needed = {'task', 'norm', 'per_device', 'accumulation', 'seed', 'metric_name'}
    if unknown := sorted(set(values) - known):
        raise ValueError(f'unknown fields of a run: {", ".join(unknown)}; the fields are {", ".join(sorted(known))}')
    if missing := sorted(needed - set(values)):
        raise ValueError(f'missing fields of a run: {", ".join(missing)}')
    curves = {name: tuple((float(x), float(y)) for x, y in values.get(name, ())) for name in CURVES}
    return RunRecord(**{**values, **curves})


def check_records(records: Sequence[RunRecord]) -> None:
    """Check that runs can be reported together.

    Raises:
        ValueError: If there is no run, a run occurs twice, or a task has two metrics.
    """
    if not records:
        raise ValueError('no runs to report')
    seen = set()
    for record in records:
        key = (*record.setting, record.seed)
        if key in seen:
            raise ValueError(f'the run {describe(record)} occurs twice')
        seen.add(key)
    for task in TASKS:
        names = sorted({record.metric_name for record in records if record.task == task})
        if len(names) > 1:
            raise ValueError(f'the {task} runs have different metrics: {", ".join(names)}')


def describe(record: RunRecord) -> str:
    return f'{record.task} {record.norm} {setting_text(record.per_device, record.accumulation)}, seed {record.seed}'


def setting_text(per_device: int, accumulation: int) -> str:
    if accumulation > 1:
        return f'{accumulation} x {per_device} accumulated'
    return '1 per step' if per_device == 1 else f'{per_device} at once'


def save_json(records: Sequence[RunRecord], path: str | Path) -> Path:
    """Write complete records, curves included."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(record) for record in records], indent=1) + '\n')
    return path


def save_csv(records: Sequence[RunRecord], path: str | Path) -> Path:
    """Write one line per run, without the curves."""
    check_records(records)
    names = [item.name for item in fields(RunRecord) if item.name not in CURVES]
    rows = ({name: getattr(record, name) for name in names} | {'failure': record.reason} for record in records)
    return write_rows(Path(path), names, rows)


def load_csv(path: str | Path) -> list[RunRecord]:
    """Read a file of `save_csv`."""
    whole = ('per_device', 'accumulation', 'seed', 'samples_seen', 'optimizer_steps')
    real = ('metric', 'train_seconds', 'peak_memory_mib')
    records = []
    with Path(path).open(newline='') as file:
        for row in csv.DictReader(file):
            values: dict = {name: value for name, value in row.items() if value != ''}
            values |= {name: int(values[name]) for name in whole if name in values}
            values |= {name: float(values[name]) for name in real if name in values}
            records.append(record_from_dict(values))
    return records


@dataclass(frozen=True)
class Summary:
    """Runs of one setting over their seeds; means are None if no run succeeded."""

    task: str
    norm: str
    per_device: int
    accumulation: int
    metric_name: str
    seeds: int
    failed: int
    metric_mean: float | None
    metric_std: float | None
    train_seconds: float | None
    peak_memory_mib: float | None
    samples_seen: int | None
    optimizer_steps: int | None

    @property
    def batch(self) -> int:
        return self.per_device * self.accumulation


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def summarize(records: Sequence[RunRecord]) -> list[Summary]:
    """Return mean and sample standard deviation over the successful seeds of each setting, in the table's order.

    `seeds` counts all runs of a setting, `failed` those without a result. The deviation needs two results.

    Raises:
        ValueError: If the seeds of a setting differ in samples or optimizer steps, and as `check_records`.
    """
    check_records(records)
    groups: dict[tuple, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.setting, []).append(record)
    summaries = []
    for runs in groups.values():
        good = [run for run in runs if run.reason is None]
        metrics = [run.metric for run in good if run.metric is not None]
        seen = {run.samples_seen for run in good}
        steps = {run.optimizer_steps for run in good}
        if len(seen) > 1 or len(steps) > 1:
            raise ValueError(
                f'{describe(runs[0])} and its other seeds differ in length: samples seen {sorted(seen, key=str)}, '
                f'optimizer steps {sorted(steps, key=str)}'
            )
        summaries.append(
            Summary(
                task=runs[0].task,
                norm=runs[0].norm,
                per_device=runs[0].per_device,
                accumulation=runs[0].accumulation,
                metric_name=runs[0].metric_name,
                seeds=len(runs),
                failed=len(runs) - len(good),
                metric_mean=_mean(metrics),
                metric_std=stdev(metrics) if len(metrics) > 1 else None,
                train_seconds=_mean([run.train_seconds for run in good]),
                peak_memory_mib=_mean([run.peak_memory_mib for run in good]),
                samples_seen=next(iter(seen), None),
                optimizer_steps=next(iter(steps), None),
            )
        )
    return sorted(summaries, key=lambda item: (TASKS.index(item.task), *row_order(item)))


def row_order(item: RunRecord | Summary) -> tuple:
    """Return the sort key of a row: batch, real batches after accumulated ones, norms in `NORM_ORDER`, then others."""
    rank = NORM_ORDER.index(item.norm) if item.norm in NORM_ORDER else len(NORM_ORDER)
    return item.batch, item.per_device, rank, item.norm


def save_summary_csv(records: Sequence[RunRecord], path: str | Path) -> Path:
    """Write one line per setting: mean, standard deviation, number of seeds and of failures."""
    columns = [item.name for item in fields(Summary)]
    return write_rows(Path(path), columns, (asdict(item) for item in summarize(records)))
