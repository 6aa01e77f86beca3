"""Load a recipe, apply the command line to it, and refuse what would fail late or silently."""

import argparse
import difflib
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from ...microbatch.activation_memory import MODES
from ..files import some
from .tree import PRETRAINED, dicts_in, hooks_in, places_of

OF_MMENGINE = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
"""Keys of `default_hooks` that mmengine fills by itself, and for which None means off there too."""

GUARDS = dict(
    checkpoint_guard='CheckpointGuardHook',
    step_statistics='StepStatisticsHook',
    non_finite='NonFiniteHook',
    norm_report='NormReportHook',
)
"""Hooks that no training should lack, by their keys in configs/_base_/default_runtime.py."""

RUNNER_KEYS = {
    *inspect.signature(Runner.__init__).parameters,
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
} - {'self', 'cfg'}
"""What a Runner takes or looks up in its config, whether or not a recipe has it."""


def load_recipe(path: str, *, work_dir: str | None = None, options: Sequence[str] | None = None) -> Config:
    """Read a recipe file, apply `--cfg-options` and `--work-dir`, and switch off the hooks that it sets to None.

    Raises:
        FileNotFoundError: If there is no such file, naming similar ones beside it.
        ValueError: If an option is not KEY=VALUE, its key starts with nothing the recipe or the Runner knows, or is a
            variable of the recipe that was copied when the file was read.
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


def switch_off_hooks(cfg: Config) -> None:
    """Move keys of `default_hooks` that are None to `cfg.switched_off_hooks`; mmengine takes None for its own only."""
    hooks = cfg.get('default_hooks') or {}
    off = [key for key, hook in hooks.items() if hook is None and key not in OF_MMENGINE]
    for key in off:
        del hooks[key]
    if off:
        cfg.switched_off_hooks = [*cfg.get('switched_off_hooks', []), *off]


def add_guards(cfg: Config) -> list[str]:
    """Add the `GUARDS` that a config lacks, such as one of mmsegmentation's; a key set to None stays off.

    Returns:
        One line that names what was added; none if the config has them all.
    """
    there = {hook.get('type') for hook in hooks_in(cfg)}
    off = cfg.get('switched_off_hooks', [])
    added = {key: dict(type=kind) for key, kind in GUARDS.items() if kind not in there and key not in off}
    if not added:
        return []
    cfg.default_hooks = (cfg.get('default_hooks') or {}) | added
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    cfg.custom_imports = imports | dict(imports=[*imports['imports'], 'wsbcn_mm.engine.hooks'])
    return [f'default_hooks lacks {", ".join(added)}: added; to switch one off: default_hooks.{next(iter(added))}=None']


def changes_of(cfg: Config, path: str) -> str:
    """What a config has become since it was read from a recipe file, as the lines of a diff without context."""
    before, now = (one.pretty_text.splitlines() for one in (Config.fromfile(path), cfg))
    return '\n'.join(difflib.unified_diff(before, now, path, 'this run', n=0, lineterm=''))


def parse_options(options: Sequence[str], known: set[str]) -> dict[str, Any]:
    """'a.b=1' -> {'a.b': 1}, with the types and brackets that mmengine understands.

    Raises:
        ValueError: For an option without '=' or with a first key that is not in `known`.
    """
    for option in options:
        key = option.split('=')[0]
        if '=' not in option:
            raise ValueError(f'--cfg-options {option!r} is not of the form KEY=VALUE')
        first = key.split('.')[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise ValueError(f'--cfg-options {option!r}: neither the recipe nor the Runner has {first!r}{hint}')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction)
    return parser.parse_args(['--options', *options]).options


def refuse_copied_variables(cfg: Config, changes: Iterable[str]) -> None:
    """Raise ValueError for a change of a variable that configs copy by value, as `norm_cfg`: it would reach nothing."""
    for key in changes:
        name = key.split('.')[0]
        if name in RUNNER_KEYS or not isinstance(cfg.get(name), (dict, list, tuple, str)):
            continue
        read = {one: value for one, value in cfg.items() if one in RUNNER_KEYS}
        places = list(places_of(cfg[name], read))
        if places:
            raise ValueError(
                f'--cfg-options {key}: {name} is a variable of the recipe, which was copied when the file was read. '
                f'Change the copies: {some(places)}'
            )


def resume_from(cfg: Config, checkpoint: str | None) -> None:
    """Make `cfg` continue a run: from `checkpoint`, or for 'auto' from the last one in its work_dir, if it has one.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    if checkpoint is None:
        return
    if checkpoint != 'auto':
        require_checkpoint(checkpoint)
    cfg.resume = True
    cfg.load_from = None if checkpoint == 'auto' else checkpoint


def load_checkpoint_into(cfg: Config, checkpoint: str) -> None:
    """Evaluate `checkpoint`; the weights a model would have started training from are not looked for.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    require_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    drop_pretrained(cfg)


def require_checkpoint(checkpoint: str) -> None:
    """Raise FileNotFoundError for a local file that does not exist, or is a folder."""
    if Path(checkpoint).is_dir():
        raise FileNotFoundError(f'checkpoint {checkpoint!r} is a folder: name a file in it')
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f'checkpoint {checkpoint!r} does not exist')


TASKS = {'mmseg': 'segmentation', 'mmengine': 'video'}
"""Package of a recipe's task, by the default scope of its recipes."""

PICTURES = {'segmentation': 'OverlayHook', 'video': 'ClipStripHook'}
"""Hook that draws predictions, by task."""


def task_of(cfg: Config) -> str:
    """'segmentation' or 'video', by the recipe's default scope.

    Raises:
        ValueError: For a recipe of neither task.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise ValueError(
            f'default_scope={scope!r}: {" or ".join(f"{one!r} ({task})" for one, task in TASKS.items())} is expected'
        )
    return TASKS[scope]


def save_pictures(cfg: Config, folder: str, at_most: int) -> None:
    """Add the hook of this recipe's task that saves predictions beside the truth as PNG.

    Raises:
        ValueError: For a recipe of neither task.
    """
    hook = dict(type=PICTURES[task_of(cfg)], out_dir=folder, max_images=at_most)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def check_recipe(cfg: Config) -> None:
    """Refuse a recipe that would fail after minutes of loading, or not do what it says.

    Raises:
        FileNotFoundError: If pretrained weights it starts from are not there.
        ValueError: If `sync_bn` is set for a model with BCN, which that conversion does not reach, or for an
            `activation_memory` that is unknown or does not go with the rest.
    """
    requested_activation_memory(cfg)
    for node in dicts_in(cfg.get('model') or {}):
        checkpoint = str(node.get('checkpoint'))
        if node.get('type') in PRETRAINED and '://' not in checkpoint and not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f'the recipe starts from pretrained weights {checkpoint!r}, and there is no such file. Put it there '
                '(docs/pretrained.md says where it comes from), or start from random weights with --from-scratch'
            )
    if cfg.get('sync_bn') and any(node.get('type') == 'BCN' for node in dicts_in(cfg.model)):
        raise ValueError(f"sync_bn={cfg.sync_bn!r} does not reach BCN: set statistics='sync' in its norm_cfg instead")


def requested_activation_memory(cfg: Config) -> dict[str, Any]:
    """Arguments of `set_activation_memory` from a recipe.

    Raises:
        ValueError: For an unknown mode or key, or beside `compile` or `activation_checkpointing`.
    """
    value = cfg.get('activation_memory', 'all')
    asked = dict(value) if isinstance(value, dict) else dict(mode=value)
    if 'mode' not in asked or not set(asked) <= {'mode', 'modules'}:
        raise ValueError(f"activation_memory={value!r}: a mode or a dict of 'mode' and 'modules' is expected")
    if asked['mode'] not in MODES:
        raise ValueError(f'activation_memory={asked["mode"]!r} is unknown: choose one of {", ".join(MODES)}')
    for other in ('compile', 'activation_checkpointing'):
        if asked['mode'] != 'all' and cfg.get(other):
            raise ValueError(
                f'activation_memory={asked["mode"]!r} does not go with {other}={cfg[other]!r}, which decides on its '
                'own what is recomputed: leave one of them out'
            )
    return asked


def require_segmentation(cfg: Config, option: str) -> None:
    """Raise ValueError if the recipe cannot take this option of the command line, which only segmentation has."""
    if task_of(cfg) != 'segmentation':
        raise ValueError(f'{option} with a recipe of {task_of(cfg)} ({cfg.filename}): only segmentation has it')


def drop_pretrained(cfg: Config) -> None:
    """Remove every pretrained start from the model, which then starts from random weights."""
    for node in dicts_in(cfg.model):
        init = node.get('init_cfg')
        if isinstance(init, dict) and init.get('type') in PRETRAINED:
            node['init_cfg'] = None
        elif isinstance(init, (list, tuple)):
            node['init_cfg'] = [one for one in init if one.get('type') not in PRETRAINED]
