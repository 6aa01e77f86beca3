"""A checkpoint or an exported file, the recipe and class names that belong to it, and the model built from them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...surgery.checkpoint_import import strip_prefix
from ...surgery.export import SUFFIXES
from ...surgery.fingerprint import compare, fingerprint
from ..checkpoint.norm_guard import fingerprint_in
from ..checkpoint.reading import read_checkpoint
from ..export import load_exported
from ..files import nearest, require, some
from ..recipe.load import load_recipe
from ..recipe.model import build_model
from .recipe_text import config_of_text, import_custom_modules, inference_config, refuse_functions

Run = Callable[[Tensor], Tensor]


class Source(NamedTuple):
    """What a file holds for inference.

    Attributes:
        path: The checkpoint or exported file.
        cfg: Model, test pipeline, scope and imports of its recipe.
        classes: Class names in label order; empty if neither the file nor the recipe has them.
        palette: One RGB colour for each class; empty if there are none.
        meta: The checkpoint's `meta`; empty for an exported file.
        state: The weights of a checkpoint; None for an exported file.
        run: The network of an exported file; None for a checkpoint.
    """

    path: Path
    cfg: Config
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    meta: Mapping[str, Any]
    state: dict[str, Tensor] | None
    run: Run | None


def read_source(file: str | Path, recipe: str | Path | None = None) -> Source:
    """Read a checkpoint, or a file of tools/export.py with the JSON beside it.

    Args:
        file: `.pth`, `.safetensors` and what else `read_checkpoint` reads, or `.onnx`, `.pt2`, `.ts`.
        recipe: File of the recipe, for a `file` that does not say it.

    Raises:
        FileNotFoundError: If a file does not exist.
        ImportError: If a package or a module that the recipe imports is missing.
        ValueError: If the file is not a checkpoint, or neither it nor `recipe` says what model it is.
    """
    path = Path(file)
    if not path.exists():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist; {nearest(path)}')
    if path.is_dir():
        files = sorted(one.name for one in path.glob('*.pth'))
        inside = f'one of {some(files)}' if files else 'it has no .pth file'
        raise ValueError(f'checkpoint={str(path)!r}: a file is expected, this is a folder; {inside}')
    cfg = None if recipe is None else recipe_of_file(recipe)
    if path.suffix in SUFFIXES.values():
        return read_exported(path, cfg)
    state, meta, _ = read_checkpoint(path)
    if cfg is None:
        if not isinstance(meta.get('cfg'), str):
            beside = path.with_suffix('.py')
            hint = str(beside) if beside.is_file() else 'FILE'
            raise ValueError(
                f'{path} has no recipe in it, as checkpoints of tools/train.py have: '
                f'give it with --recipe {hint} (recipe= in Python)'
            )
        cfg = stored_recipe(meta['cfg'], str(path))
    data = meta.get('dataset_meta') or meta
    return Source(path, inference_config(cfg), *names_and_colours(data, cfg), meta, strip_prefix(state), None)


def recipe_of_file(recipe: str | Path) -> Config:
    """Read a recipe file; the module that tools/fold.py writes need not be importable."""
    require(Path(recipe))
    text = Path(recipe).read_text()
    # mmengine imports what `custom_imports` names while it reads a file, the folded segmentor from a path that only
    # stock mmseg needs.
    return stored_recipe(text, str(recipe)) if 'folded_segmentor' in text else load_recipe(str(recipe))


def stored_recipe(text: str, source: str) -> Config:
    """Read a recipe of unknown origin: nothing in it runs, and the modules that it names are imported.

    Raises:
        ImportError: If a module does not exist here.
        ValueError: For anything but plain data, layers and transforms.
    """
    cfg = config_of_text(text, source)
    import_custom_modules(cfg, source)
    refuse_functions(inference_config(cfg), source)
    return cfg


def read_exported(path: Path, cfg: Config | None) -> Source:
    """Read an exported file and the JSON of tools/export.py beside it, which a recipe can stand in for."""
    beside = path.with_name(re.sub(r'(\.int8)?$', '', path.stem) + '.json')
    facts = json.loads(beside.read_text()) if beside.is_file() else {}
    if cfg is None:
        if 'inference' not in facts:
            raise ValueError(
                f'{path} needs the recipe that it was exported from: {beside.name}, which tools/export.py writes '
                'beside it, or --recipe FILE (recipe= in Python)'
            )
        cfg = stored_recipe(facts['inference'], str(beside))
    classes, palette = names_and_colours(facts, cfg)
    return Source(path, inference_config(cfg), classes, palette, {}, None, load_exported(path))


def names_and_colours(data: Mapping[str, Any], cfg: Config) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Return class names and palette of a checkpoint, or those that the recipe's test data have in `metainfo`."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    for facts in (data, dataset.get('metainfo') or {}):
        classes = facts.get('classes') or facts.get('CLASSES')
        if classes:
            colours = facts.get('palette') or facts.get('PALETTE') or ()
            return tuple(map(str, classes)), tuple((int(r), int(g), int(b)) for r, g, b in colours)
    return (), ()


def build(source: Source, device: torch.device, deployment: ModuleType) -> tuple[nn.Module, list[str]]:
    """Build the model of a source in evaluation mode.

    Args:
        source: Checkpoint or exported file.
        device: Device of the model. An exported file runs on the CPU.
        deployment: `wsbcn_mm.segmentation.models.deployment` or `wsbcn_mm.video.models.deployment`.

    Returns:
        The model, and what a person should know about it, one line each.

    Raises:
        ValueError: If the weights do not fit the recipe's model.
    """
    if source.run is not None:
        model = build_model(source.cfg, 'cpu')
        deployment.answer_with(source.run, model)
        return model.eval(), []
    model = build_model(source.cfg, 'cpu')
    notes = load_weights(model, source)
    return model.to(device).eval(), notes


def load_weights(model: nn.Module, source: Source) -> list[str]:
    """Load every weight of a model from a checkpoint of the same norm and the same Weight Standardization.

    Returns:
        Notes: that the checkpoint does not say whether its filters were standardised.

    Raises:
        ValueError: If weights are missing or left over, have another shape, or belong to another norm.
    """
    path, state = source.path, source.state or {}
    remedy = 'give the recipe that it was trained with: --recipe FILE (recipe= in Python)'
    layers = fingerprint_in({'state_dict': state, 'meta': source.meta})
    try:
        found = compare(layers, fingerprint(model))
    except ValueError as error:
        raise ValueError(f'{path}: {error}; {remedy}') from None
    if found.verdict == 'mismatch':
        raise ValueError(f'{path} is {found.theirs}, the recipe {found.ours}: {"; ".join(found.differences)}; {remedy}')
    ours = model.state_dict()
    missing, others = [key for key in ours if key not in state], [key for key in state if key not in ours]
    shapes = [key for key in ours if key in state and ours[key].shape != state[key].shape]
    problems = [
        f'{len(keys)} weights {what} ({some(keys)})'
        for keys, what in ((missing, 'are missing'), (others, 'are not in the model'), (shapes, 'have another shape'))
        if keys
    ]
    if problems:
        raise ValueError(f"{path} does not fit its recipe's model: {', '.join(problems)}; {remedy}")
    model.load_state_dict(state)
    if found.verdict == 'unknown' and found.ours.endswith('-ws'):
        return [f'{path} does not say whether its filters were trained with Weight Standardization; its recipe has it']
    return []


def class_names(given: Sequence[str], outputs: int) -> tuple[tuple[str, ...], list[str]]:
    """Return one name for each output of a model, and a note where names are missing.

    A class without a name is 'class N'.
    """
    names = tuple(given[:outputs]) + tuple(f'class {index}' for index in range(len(given), outputs))
    if not given:
        return names, ['the file has no class names: classes are numbered']
    if len(given) != outputs:
        return names, [f'the file names {len(given)} classes, the model has {outputs}: the others are numbered']
    return names, []


def input_channels(cfg: Config) -> int:
    """Return the number of channels of a recipe's inputs, by its backbone or else its preprocessor."""
    backbone, preprocessor = cfg.model.get('backbone') or {}, cfg.model.get('data_preprocessor') or {}
    return backbone.get('in_channels') or len(preprocessor.get('mean') or (0, 0, 0))


def facts_for_inference(cfg: Config, checkpoint: str | Path) -> dict[str, Any]:
    """Return what the JSON beside an exported file must have for `read_exported`: classes, palette and recipe."""
    meta = read_checkpoint(checkpoint).meta
    classes, palette = names_and_colours(meta.get('dataset_meta') or meta, cfg)
    reduced = inference_config(cfg)
    reduced.model.pop('auxiliary_head', None)
    return dict(classes=classes, palette=palette, inference=reduced.pretty_text)
