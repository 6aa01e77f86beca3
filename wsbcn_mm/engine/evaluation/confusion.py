"""Count confusion matrices in integers on the device; write them as CSV and as pictures."""

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

MOST_LABELLED = 40
"""With more classes than this, the axes have no class names."""
MOST_WRITTEN = 24
"""With more classes than this, the cells have no numbers."""
PAIRS = 20
INK, PALE = '#1f2933', '#9aa5b1'


def count_pairs(truth: Tensor, predicted: Tensor, num_classes: int, counted: Tensor | None = None) -> Tensor:
    """Count how often each class was predicted as each class.

    Args:
        truth: Class ids, any shape and integer type.
        predicted: Class ids of the same shape.
        num_classes: K. Counted ids must be 0 to K - 1.
        counted: Mask of the elements to count, bool, of the same shape; None counts all.

    Returns:
        (K, K) int64 on the device of `truth`; rows are true classes, columns predicted ones.
    """
    pairs = truth.long() * num_classes + predicted.long()
    cells = num_classes**2
    if counted is not None:
        pairs = pairs.where(counted, cells)
    return pairs.flatten().bincount(minlength=cells + 1)[:cells].view(num_classes, num_classes)


def write_confusion(file: Path, confusion: Tensor, names: Sequence[str]) -> None:
    """Write the counts as CSV: a line for each true class, a column for each predicted class."""
    rows = [[name, *counts] for name, counts in zip(names, confusion.tolist(), strict=True)]
    write_csv(file, ['true class', *names], rows)


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV file with a header."""
    with file.open('w', newline='', encoding='utf-8') as text:
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(header)
        writer.writerows(rows)


class Confused(NamedTuple):
    """One class predicted as another."""

    truth: int
    predicted: int
    times: int
    share: float
    """Fraction of all samples of the true class, 0 to 1."""


def most_confused(confusion: Tensor, at_most: int) -> list[Confused]:
    """Return the pairs of different classes that were confused most often, most frequent first."""
    num_classes = len(confusion)
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    counts, cells = wrong.sort(descending=True, stable=True)
    totals = confusion.sum(1)
    pairs = []
    for count, cell in zip(counts[:at_most].tolist(), cells[:at_most].tolist(), strict=True):
        if count:
            truth, predicted = divmod(cell, num_classes)
            pairs.append(Confused(truth, predicted, count, count / int(totals[truth])))
    return pairs


def class_names(dataset_meta: dict | None, num_classes: int) -> list[str]:
    """Return the dataset's class names; 'class 0', 'class 1', ... if it has none."""
    return list((dataset_meta or {}).get('classes') or [f'class {label}' for label in range(num_classes)])


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return `part / whole` of integers in float64; nan where `whole` is 0."""
    return torch.where(whole > 0, part.double() / whole.double(), torch.nan)


def draw_confusion(file: Path, confusion: Tensor, names: Sequence[str], unit: str) -> None:
    """Save a PNG with a line for each true class, in percent of that class. Lines of absent classes are blank.

    With few classes, the axes have their names and the cells the percentages. With many classes, the pairs that were
    confused most often are listed beside the matrix instead.

    Args:
        file: Path of the PNG.
        confusion: (K, K) counts; rows are true classes.
        names: K names.
        unit: Unit of the counts, such as 'pixels'.
    """
    num_classes = len(confusion)
    share = 100 * ratio(confusion, confusion.sum(1, keepdim=True).expand_as(confusion))
    labelled = num_classes <= MOST_LABELLED
    shown = [textwrap.fill(name, 26, max_lines=2, placeholder='…') for name in names] if labelled else []
    longest = max((len(line) for name in shown for line in name.splitlines()), default=0)
    side = (max(2.5, 0.42 * num_classes) + 0.08 * longest if labelled else 7.0) + 0.6  # inches
    figure = Figure(figsize=(side + (0.8 if labelled else 6.9), side), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes, listing = (figure.add_subplot(), None) if labelled else figure.subplots(1, 2, width_ratios=(8, 6))
    image = axes.imshow(share.numpy(), cmap='Blues', vmin=0, vmax=100, interpolation='nearest')
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label(f'{unit} of the true class (%)', color=INK)
    bar.outline.set_visible(False)
    axes.set_xlabel('predicted', color=INK)
    axes.set_ylabel('true', color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK, labelsize=8)
    if labelled:
        axes.set_xticks(range(num_classes), shown, rotation=90)
        axes.set_yticks(range(num_classes), shown)
    if num_classes <= MOST_WRITTEN:
        for (row, column), value in zip(_cells(num_classes), share.flatten().tolist(), strict=True):
            if value >= 0.5:
                colour = 'white' if value > 55 else INK
                axes.text(column, row, f'{value:.0f}', ha='center', va='center', color=colour, fontsize=8)
    for row in (confusion.sum(1) == 0).nonzero().flatten().tolist():
        axes.axhline(row, color=PALE, linewidth=1, linestyle=':')
        if labelled:
            axes.text(num_classes - 1, row, 'absent', color=PALE, ha='center', va='bottom', fontsize=8)
    if listing is not None:
        _list_pairs(listing, confusion, names, unit)
    figure.savefig(file)


def _cells(num_classes: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(num_classes) for column in range(num_classes)]


def _list_pairs(axes, confusion: Tensor, names: Sequence[str], unit: str) -> None:
    axes.axis('off')
    pairs = most_confused(confusion, PAIRS)
    axes.text(0, 1, f'Confused most often ({unit})' if pairs else 'No confusions', color=INK, va='top')
    for place, pair in enumerate(pairs):
        true, predicted = (textwrap.shorten(names[label], 56, placeholder='…') for label in pair[:2])
        height = 0.95 - place * 0.95 / PAIRS
        axes.text(0, height, f'{pair.times}  ({100 * pair.share:.0f} %)', color=INK, va='top', fontsize=9)
        axes.text(0.22, height, f'{true}\n→ {predicted}', color=INK, va='top', fontsize=8)
