"""Hooks of a config, by key: switch one off, add the guards that a config of others lacks, save pictures."""

from mmengine.config import Config

from .task import task_of
from .tree import hooks_in

OF_MMENGINE = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
"""Keys of `default_hooks` that mmengine fills itself, and the only ones for which it accepts None."""

GUARDS = dict(
    checkpoint_guard='CheckpointGuardHook',
    step_statistics='StepStatisticsHook',
    non_finite='NonFiniteHook',
    norm_report='NormReportHook',
)
"""Hooks that every training needs, by their keys in configs/_base_/default_runtime.py."""

PICTURES = {'segmentation': 'OverlayHook', 'video': 'ClipStripHook'}
"""Hook that draws predictions, by task."""


def switch_off_hooks(cfg: Config) -> None:
    """Remove the keys of `default_hooks` that are None, and list them in `cfg.switched_off_hooks`."""
    hooks = cfg.get('default_hooks') or {}
    off = [key for key, hook in hooks.items() if hook is None and key not in OF_MMENGINE]
    for key in off:
        del hooks[key]
    if off:
        cfg.switched_off_hooks = [*cfg.get('switched_off_hooks', []), *off]


def add_guards(cfg: Config) -> list[str]:
    """Add the `GUARDS` that a config lacks, such as a stock mmsegmentation file; those switched off stay off.

    Returns:
        One line that names the added keys; no line if the config has all guards.
    """
    present = {hook.get('type') for hook in hooks_in(cfg)}
    off = cfg.get('switched_off_hooks', [])
    added = {key: dict(type=name) for key, name in GUARDS.items() if name not in present and key not in off}
    if not added:
        return []
    cfg.default_hooks = (cfg.get('default_hooks') or {}) | added
    imports = cfg.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
    cfg.custom_imports = imports | dict(imports=[*imports['imports'], 'wsbcn_mm.engine.hooks'])
    return [f'default_hooks lacks {", ".join(added)}: added; to switch one off: default_hooks.{next(iter(added))}=None']


def save_pictures(cfg: Config, folder: str, at_most: int) -> None:
    """Add the hook that saves predictions of this recipe's task beside the truth as PNG.

    Raises:
        ValueError: For a recipe of neither task.
    """
    hook = dict(type=PICTURES[task_of(cfg)], out_dir=folder, max_images=at_most)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
