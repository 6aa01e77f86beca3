"""From a checkpoint and files to a folder of predictions: what tools/predict.py runs."""

# ruff: noqa: E402 - the environment is judged before anything of mmengine is imported
from ..engine.environment import require_openmmlab

require_openmmlab()

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..engine.inference.inputs import expand, is_many
from ..engine.inference.progress import Progress
from ..engine.inference.report import Report, output_names
from .load import load

FILES = {'images': 'SegmentationFiles', 'videos': 'VideoFiles'}
"""Class that writes the files of results, in the module `files` beside that of the model."""

FEW = 20
"""Inputs whose results are printed one by one."""

ONLY = {
    'images': ('tile', 'overlap', 'max_value', 'opacity'),
    'videos': ('window', 'step', 'fps', 'top', 'annotated'),
}
"""Options that only models of this kind take."""


def predict(
    checkpoint: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    recipe: str | Path | None = None,
    device: str | None = None,
    pictures: bool = True,
    **options: Any,
) -> int:
    """Predict images or videos and write the results.

    Images give `overlays/` and `class_ids/`, videos `strips/` and `annotated/`, both `predictions.csv` and
    `predictions.json`. An input that cannot be read is reported, and the others are predicted.

    Args:
        checkpoint: Checkpoint or exported file.
        inputs: Files, folders and globs.
        out: Folder for the results, made if missing.
        recipe: File of the recipe, for a checkpoint that has none.
        device: Where the model runs; by default a GPU if there is one.
        pictures: Whether to draw overlays or strips.
        options: Those of the model's `iterate` and of its files; None stands for the default.

    Returns:
        Number of inputs that could not be read.

    Raises:
        FileNotFoundError: If the checkpoint, the recipe or an input does not exist.
        ValueError: If no input is of the kind that the model takes, or for an option of another kind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = load(checkpoint, recipe=recipe, device=device)
    for note in model.notes:
        print(f'note: {note}')
    given = {name: value for name, value in options.items() if value is not None}
    for kind, names in ONLY.items():
        strange = [name for name in given if name in names and kind != model.kind]
        if strange:
            raise ValueError(f'{strange[0]}={given[strange[0]]!r}: only models of {kind} take it, not of {model.kind}')
    module = import_module(f'{type(model).__module__.rpartition(".")[0]}.files')
    folder = Path(out)
    files = without_results(expand(inputs, model.kind), inputs, [folder / name for name in module.FOLDERS])
    name_of = output_names(files)
    saving = dict(pictures=pictures) | {name: given.pop(name) for name in module.OPTIONS if name in given}
    if model.kind == 'videos':
        saving['in_windows'] = 'window' in given
    writer = getattr(module, FILES[model.kind])(folder, model, **saving)
    report = Report(folder, writer.columns, checkpoint=str(checkpoint), classes=model.classes)
    progress = Progress(len(files), model.kind)
    failed = 0

    def on_error(one: Any, error: Exception) -> None:
        nonlocal failed
        failed += 1
        progress.clear()
        print(f'{error}', file=sys.stderr)
        report.fail(str(one), error)
        progress.advance()

    try:
        for result in model.iterate(files, on_error=on_error, advance=progress.advance, **given):
            report.add(*writer.write(result, name_of[Path(str(result.source))]))
            for note in result.notes:
                progress.clear()
                print(f'{result.source}: {note}')
            if len(files) <= FEW:
                progress.clear()
                print(result)
    finally:
        progress.clear()
        report.close()
    print(f'{len(files) - failed} of {len(files)} {model.kind} -> {folder}')
    return failed


def without_results(files: Sequence[Path], inputs: Sequence[str | Path], folders: Sequence[Path]) -> list[Path]:
    """Return files without those that an earlier run wrote into folders, unless they were named one by one."""
    named = {Path(one) for one in inputs if not is_many(one)}
    written = [folder.resolve() for folder in folders]
    kept = [
        file for file in files if file in named or not any(file.resolve().is_relative_to(folder) for folder in written)
    ]
    if not kept:
        raise ValueError(f'input={", ".join(map(str, inputs))}: it has nothing but the results of an earlier run')
    return kept
