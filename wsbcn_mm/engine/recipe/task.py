"""The task of a recipe: segmentation or video."""

from mmengine.config import Config

TASKS = {'mmseg': 'segmentation', 'mmengine': 'video'}
"""Task, which is also the name of its package in wsbcn_mm, by the default scope of its recipes."""


def task_of(cfg: Config) -> str:
    """Return 'segmentation' or 'video', by the recipe's default scope.

    Raises:
        ValueError: For a recipe of neither task.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        accepted = ' or '.join(f'{one!r} ({task})' for one, task in TASKS.items())
        raise ValueError(f'default_scope={scope!r}: {accepted} is expected')
    return TASKS[scope]


def require_segmentation(cfg: Config, option: str) -> None:
    """Raise ValueError for an option of the command line that only segmentation has."""
    if task_of(cfg) != 'segmentation':
        raise ValueError(f'{option} with a recipe of {task_of(cfg)} ({cfg.filename}): only segmentation has it')
