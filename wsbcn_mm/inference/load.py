"""Make a callable of a checkpoint or an exported file."""

# ruff: noqa: E402 - the environment is judged before anything of mmengine is imported
from ..engine.environment import require_openmmlab

require_openmmlab()

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..engine.inference.source import build, read_source
from ..engine.recipe.task import task_of

if TYPE_CHECKING:
    from ..segmentation.inference.segmenter import Segmenter
    from ..video.inference.classifier import ClipClassifier

ROOT = __name__.partition('.')[0]

PREDICTORS = {'segmentation': ('segmenter', 'Segmenter'), 'video': ('classifier', 'ClipClassifier')}
"""Module and class of a task's predictor, in its package `inference`."""


def load(
    checkpoint_or_exported_file: str | Path,
    *,
    recipe: str | Path | None = None,
    device: str | torch.device | None = None,
) -> 'Segmenter | ClipClassifier':
    """Return a callable model: `model(path | array | list, **options)` gives a result or a list of results.

    What a person should know about the file, such as missing class names, is a warning, and is in `model.notes`.

    Args:
        checkpoint_or_exported_file: A checkpoint of tools/train.py, which has its recipe in it; any other checkpoint
            with its `recipe`; or a file of tools/export.py with the JSON beside it. Nothing in a file is executed.
        recipe: File of the recipe, for a checkpoint that has none, or to use in place of the one that it has.
        device: Where the model runs; by default 'cuda' if there is one. Exported files run on the CPU.

    Raises:
        FileNotFoundError: If a file does not exist.
        ImportError: If a package or a module that the recipe imports is missing.
        ValueError: If the file is not a checkpoint, does not say its recipe, or does not fit it.
    """
    source = read_source(checkpoint_or_exported_file, recipe)
    package = f'{ROOT}.{task_of(source.cfg)}'
    module, name = PREDICTORS[task_of(source.cfg)]
    where = torch.device('cpu' if source.run else device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    model, notes = build(source, where, import_module(f'{package}.models.deployment'))
    predictor = getattr(import_module(f'{package}.inference.{module}'), name)(model, source, where, notes)
    for note in predictor.notes:
        warnings.warn(note, stacklevel=2)
    return predictor
