"""Learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from projects.micro_batch_demo.records import RunRecord, row_order, setting_text

COLOURS = {
    'bn': '#d1495b',
    'syncbn': '#8d6a9f',
    'gn': '#1f77b4',
    'gn-ws': '#2a9d5c',
    'bn-ws': '#c98a00',
    'bcn-ws': '#6a3d9a',
    'bcnsync-ws': '#00838f',
}
OTHER_COLOUR = '#555555'
LOSS_WINDOW = 0.05


def running_mean(values: np.ndarray, share: float = LOSS_WINDOW) -> np.ndarray:
    """Return the running mean (N,) -> (N,) over a window centred on each point, which shrinks at the ends."""
    half = max(1, round(len(values) * share)) // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Move values apart until neighbours differ by `gap`; their order and their mean stay."""
    order = np.argsort(values, kind='stable')
    placed = np.asarray(values, float)[order]
    for _ in range(200):
        lack = gap - np.diff(placed)
        if (lack <= 1e-9).all():
            break
        push = np.where(lack > 0, lack / 2, 0)
        placed[:-1] -= push
        placed[1:] += push
    result = np.empty(len(placed))
    result[order] = placed
    return result.tolist()


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of curves at the x values of the shortest one."""
    x = min((curve[0] for curve in curves), key=lambda values: values[-1])
    return x, np.mean([np.interp(x, *curve) for curve in curves], axis=0)


def _points(run: RunRecord, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the finite points of a run's curve; the loss as a running mean."""
    points = np.array(getattr(run, name), float).reshape(-1, 2)
    x, y = points[np.isfinite(points).all(axis=1)].T
    return x, running_mean(y) if name == 'loss_curve' and len(y) else y


def _draw_curves(axes: Axes, runs: Sequence[RunRecord], name: str) -> None:
    """Draw one line per setting, with its name in its colour at the end; real batches beside accumulated are dashed.

    The mean is over the seeds with a result, as in the table, or over all seeds if none has a result.
    """
    settings: dict[tuple, list[RunRecord]] = {}
    for run in sorted(runs, key=row_order):
        settings.setdefault(run.setting, []).append(run)
    several = len({setting[2:] for setting in settings}) > 1
    ends = []
    for (_, norm, per_device, accumulation), members in settings.items():
        curves = [(run.reason, *_points(run, name)) for run in members]
        curves = [curve for curve in curves if len(curve[1])]
        if not curves:
            continue
        colour = COLOURS.get(norm, OTHER_COLOUR)
        style = '--' if several and accumulation == 1 else '-'
        if len(curves) > 1:
            for _, x, y in curves:
                axes.plot(x, y, style, color=colour, linewidth=0.8, alpha=0.35)
        averaged = [curve[1:] for curve in curves if not curve[0]] or [curve[1:] for curve in curves]
        x, y = _mean_curve(averaged)
        axes.plot(x, y, style, color=colour, linewidth=2, marker='o' if len(x) < 3 else None, markersize=4)
        label = f'{norm}, {setting_text(per_device, accumulation).removesuffix(" accumulated")}' if several else norm
        if any(run.reason for run in members):
            label += ' (failed)' if all(run.reason for run in members) else ' (a seed failed)'
        ends.append((float(y[-1]), float(x[-1]), label, colour))
    if not ends:
        axes.text(0.5, 0.5, 'no points logged', transform=axes.transAxes, ha='center', color=OTHER_COLOUR)
        return
    bottom, top = axes.get_ylim()
    gap = 0.062 * (top - bottom)
    heights = spread([end[0] for end in ends], gap)
    raised = max(0.0, bottom + gap / 2 - min(heights))
    heights = [height + raised for height in heights]
    right = max(end[1] for end in ends)
    for height, (last, x_end, label, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            label,
            (x_end, last),
            (right + 0.03 * (right - axes.get_xlim()[0]), height),
            color=colour,
            fontsize=9,
            va='center',
            annotation_clip=False,
            arrowprops={'arrowstyle': '-', 'color': colour, 'linewidth': 0.5, 'shrinkA': 0, 'shrinkB': 1},
        )


def write_curves(runs: Sequence[RunRecord], path: str | Path) -> Path:
    """Draw metric and loss over the samples seen, for the runs of one task, with a row of panels per global batch.

    Raises:
        ValueError: If the runs are of several tasks.
    """
    tasks = {run.task for run in runs}
    if len(tasks) != 1:
        raise ValueError(f'tasks={sorted(tasks)}: runs of one task are expected')
    batches = sorted({run.batch for run in runs})
    figure = Figure(figsize=(13, 4.2 * len(batches)), layout='constrained')
    grid = figure.subplots(len(batches), 2, squeeze=False)
    for row, batch in zip(grid, batches, strict=True):
        members = [run for run in runs if run.batch == batch]
        heading = 'one sample per step' if batch == 1 else f'global batch of {batch}'
        titles = (f'validation {members[0].metric_name} (%)', f'training loss, mean over {LOSS_WINDOW:.0%} of the run')
        for axes, name, title in zip(row, ('metric_curve', 'loss_curve'), titles, strict=True):
            _draw_curves(axes, members, name)
            axes.set_title(f'{title}: {heading}', loc='left', fontsize=11)
            axes.set_xlabel('training samples seen')
            axes.spines[['top', 'right']].set_visible(False)
            axes.grid(alpha=0.25)
            axes.xaxis.set_major_formatter('{x:,.0f}')
    return _save(figure, path)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
