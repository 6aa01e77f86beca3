"""Pictures of the results: learning curves, predicted label maps beside the truth, clips with predicted classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from projects.micro_batch_demo.contact_sheet import colour_labels, read_clip
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
RIGHT, WRONG = '#0a6b3d', '#b3261e'

Source = str | Path | np.ndarray


def running_mean(values: np.ndarray, share: float = LOSS_WINDOW) -> np.ndarray:
    """Mean over the points up to half a window before and after, (N,) -> (N,); the window shrinks at the ends."""
    half = max(1, round(len(values) * share)) // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Moves values apart until neighbours are ``gap`` away from each other, keeping their order and their middle."""
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
    """The mean of curves on the x values of the shortest one."""
    x = min((curve[0] for curve in curves), key=lambda values: values[-1])
    return x, np.mean([np.interp(x, *curve) for curve in curves], axis=0)


def _points(run: RunRecord, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The finite points of a run's curve, the loss as running mean."""
    points = np.array(getattr(run, name), float).reshape(-1, 2)
    x, y = points[np.isfinite(points).all(axis=1)].T
    return x, running_mean(y) if name == 'loss_curve' and len(y) else y


def _draw_curves(axes: Axes, runs: Sequence[RunRecord], name: str) -> None:
    """One line per setting, each named at its end in its own colour; a real batch beside accumulated ones is dashed.

    The mean is over the seeds with a result, as in the table, or over all where none has one.
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
        axes.text(0.5, 0.5, 'no points were logged', transform=axes.transAxes, ha='center', color=OTHER_COLOUR)
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
    """Metric and loss against the samples seen, for the runs of one task; one row of panels per global batch."""
    tasks = {run.task for run in runs}
    if len(tasks) != 1:
        raise ValueError(f'curves need runs of one task, got {sorted(tasks)}')
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


def _read_picture(source: Source) -> np.ndarray:
    """A label map (H, W) or an RGB picture (H, W, 3), from an array or a PNG file."""
    if isinstance(source, np.ndarray):
        return source
    picture = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError(f'{source} cannot be read as a picture')
    return picture if picture.ndim == 2 else cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2RGB)


def write_overlays(
    path: str | Path,
    images: Sequence[Source],
    truth: Sequence[Source],
    predictions: Mapping[str, Sequence[Source | None]],
    palette: list[list[int]],
) -> Path:
    """Writes a grid: one row per image with the image, the true labels and what each run predicted.

    Args:
        path: The PNG file.
        images: RGB arrays (H, W, 3) or files.
        truth: Label maps (H, W) or files; 255 is drawn white.
        predictions: Column title -> one label map per image, as arrays or files; RGB pictures are shown as they are,
            None as an empty field.
        palette: RGB colour of each label.
    """
    columns: dict[str, Sequence[Source | None]] = {'image': images, 'truth': truth, **predictions}
    for name, sources in columns.items():
        if len(sources) != len(images):
            raise ValueError(f'{name} has {len(sources)} pictures for {len(images)} images')
    figure = Figure(figsize=(1.7 * len(columns), 1.75 * len(images) + 0.3), layout='constrained')
    grid = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (name, sources) in enumerate(columns.items()):
        for row, source in enumerate(sources):
            axes = grid[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(name, fontsize=10)
            if source is None:
                axes.text(0.5, 0.5, 'no result', transform=axes.transAxes, ha='center', va='center', color=WRONG)
                continue
            picture = _read_picture(source)
            if picture.ndim == 2:
                image = _read_picture(images[row])
                grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
                colours = colour_labels(picture, palette).astype(float)
                picture = np.where(picture[..., None] == 0, 0.75 * grey, 0.15 * grey + 0.85 * colours).astype(np.uint8)
            axes.imshow(picture, interpolation='nearest')
    return _save(figure, path)


def write_clip_strips(
    path: str | Path,
    clips: Sequence[Source],
    truth: Sequence[str],
    predictions: Mapping[str, Sequence[str | None]],
    frames: int = 8,
) -> Path:
    """Writes one strip of frames per clip with the true class above and each run's answer below, green where right.

    Args:
        path: The PNG file.
        clips: RGB arrays (T, H, W, 3) or video files.
        truth: True class of each clip.
        predictions: Name of the run -> predicted class of each clip, None where there is none.
        frames: Frames shown of each clip, evenly spread from the first to the last.
    """
    for name, column in {'truth': truth, **predictions}.items():
        if len(column) != len(clips):
            raise ValueError(f'{name} has {len(column)} classes for {len(clips)} clips')
    inches = 1.5 + 0.2 * len(predictions)
    figure = Figure(figsize=(1.4 * frames, (inches + 0.4) * len(clips)), layout='constrained')
    grid = figure.subplots(
        2 * len(clips), 1, squeeze=False, height_ratios=[1.5, 0.2 * len(predictions) + 0.05] * len(clips)
    )
    for index, source in enumerate(clips):
        clip = source if isinstance(source, np.ndarray) else read_clip(Path(source))
        shown = clip[np.linspace(0, len(clip) - 1, frames).round().astype(int)]
        strip, answers = grid[2 * index, 0], grid[2 * index + 1, 0]
        strip.imshow(np.concatenate(list(shown), axis=1))
        strip.set_title(f'truth: {truth[index]}', loc='left', fontsize=10, fontweight='bold', pad=3)
        strip.set_axis_off()
        answers.set_axis_off()
        for line, (name, column) in enumerate(predictions.items()):
            answer = column[index]
            right = answer == truth[index]
            text = f'{name}: {"no result" if answer is None else answer} {"✓" if right else "✗"}'
            height = 1 - (line + 0.5) / len(predictions)
            colour = RIGHT if right else WRONG
            answers.text(0, height, text, transform=answers.transAxes, va='center', fontsize=9, color=colour)
    return _save(figure, path)


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
