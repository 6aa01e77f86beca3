"""Load a recipe and apply the command line to it."""

import argparse
import difflib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from ..files import some
from .checks import require_checkpoint
from .hooks import switch_off_hooks
from .tree import drop_pretrained, places_of

RUNNER_KEYS = {
    *inspect.signature(Runner.__init__).parameters,
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
} - {'self', 'cfg'}
"""Keys that a Runner takes or looks up in its config, whether or not a recipe sets them."""


def load_recipe(path: str, *, work_dir: str | None = None, options: Sequence[str] | None = None) -> Config:
    """Read a recipe file, apply `--cfg-options` and `--work-dir`, and switch off the hooks that are None.

    Raises:
        FileNotFoundError: If the file does not exist; the message names similar files beside it.
        ValueError: If an option is not KEY=VALUE, if neither the recipe nor the Runner knows its first key, or if that
            key is a variable whose value was copied when the file was read.
    """
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(file.name, sorted(p.name for p in file.parent.glob('*.py')))
        raise FileNotFoundError(
            f'recipe {path!r} does not exist' + (f'; that folder has {", ".join(near)}' if near else '')
        )
    cfg = Config.fromfile(path)
    if options:
        changes = parse_options(options, known=set(cfg) | RUNNER_KEYS)
        refuse_copied_variables(cfg, changes)
        cfg.merge_from_dict(changes)
    switch_off_hooks(cfg)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / file.stem)
    return cfg


def parse_options(options: Sequence[str], known: set[str]) -> dict[str, Any]:
    """Parse 'a.b=1' to {'a.b': 1}, with the types and brackets that mmengine understands.

    Raises:
        ValueError: For an option without '=', or with a first key that is not in `known`.
    """
    for option in options:
        key = option.split('=')[0]
        if '=' not in option:
            raise ValueError(f'--cfg-options {option!r}: KEY=VALUE is expected')
        first = key.split('.')[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'--cfg-options {option!r}: neither the recipe nor the Runner has {first!r}{hint}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction)
    return parser.parse_args(['--options', *options]).options


def refuse_copied_variables(cfg: Config, changes: Iterable[str]) -> None:
    """Raise ValueError for a change of a variable such as `norm_cfg`, which was copied by value: it has no effect."""
    for key in changes:
        name = key.split('.')[0]
        if name in RUNNER_KEYS or not isinstance(cfg.get(name), (dict, list, tuple, str)):
            continue
        read = {one: value for one, value in cfg.items() if one in RUNNER_KEYS}
        places = list(places_of(cfg[name], read))
        if places:
            raise ValueError(
                f'--cfg-options {key}: {name} is a variable of the recipe, whose value was copied when the file was '
                f'read. Change the copies: {some(places)}'
            )


def changes_of(cfg: Config, path: str) -> str:
    """Return the differences between a config and the file it was read from, as a diff without context."""
    before, now = (one.pretty_text.splitlines() for one in (Config.fromfile(path), cfg))
    return '\n'.join(difflib.unified_diff(before, now, path, 'this run', n=0, lineterm=''))


def resume_from(cfg: Config, checkpoint: str | None) -> None:
    """Make a config continue a run from `checkpoint`, or for 'auto' from the last one in its work_dir, if there is one.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    if checkpoint is None:
        return
    if checkpoint != 'auto':
        require_checkpoint(checkpoint)
    cfg.resume = True
    cfg.load_from = None if checkpoint == 'auto' else checkpoint


def load_checkpoint_into(cfg: Config, checkpoint: str) -> None:
    """Make a config load `checkpoint` for evaluation, and none of the weights that training would start from.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    require_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    drop_pretrained(cfg)
