"""Confusion matrices: counted in integers on the device, written as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor


def count_pairs(truth: Tensor, predicted: Tensor, num_classes: int, counted: Tensor | None = None) -> Tensor:
    """How often each class was taken for each.

    Args:
        truth: Class ids, any shape and integer type.
        predicted: Likewise.
        num_classes: K; ids that are counted must be 0 to K - 1.
        counted: Which elements count, bool, of the same shape; all of them if None.

    Returns:
        (K, K) int64 on the device of `truth`; rows are true classes, columns predicted ones.
    """
    pairs = truth.long() * num_classes + predicted.long()
    cells = num_classes**2
    if counted is not None:
        pairs = pairs.where(counted, cells)
    return pairs.flatten().bincount(minlength=cells + 1)[:cells].view(num_classes, num_classes)


def write_confusion(file: Path, confusion: Tensor, names: Sequence[str]) -> None:
    """A CSV of counts: a line for each true class, a column for each predicted one."""
    rows = [[name, *counts] for name, counts in zip(names, confusion.tolist(), strict=True)]
    write_csv(file, ['true class', *names], rows)


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A CSV file with a header."""
    with file.open('w', newline='', encoding='utf-8') as text:
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(header)
        writer.writerows(rows)


class Confused(NamedTuple):
    """One class taken for another."""

    truth: int
    predicted: int
    times: int
    share: float
    """Of all samples of the true class, 0 to 1."""


def most_confused(confusion: Tensor, at_most: int) -> list[Confused]:
    """The pairs of different classes that were confused most often, the most frequent first."""
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
    """The dataset's class names, or numbers where it has none."""
    return list((dataset_meta or {}).get('classes') or [f'class {label}' for label in range(num_classes)])


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole` of integers in float64, nan where `whole` is 0."""
    return torch.where(whole > 0, part.double() / whole.double(), torch.nan)
