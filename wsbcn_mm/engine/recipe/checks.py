"""Reject recipes that would fail after minutes of loading, or silently do something else than they say."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...microbatch.activation_memory import MODES
from .tree import PRETRAINED, dicts_in


def check_recipe(cfg: Config) -> None:
    """Check pretrained files, `sync_bn` and `activation_memory` of a recipe.

    Raises:
        FileNotFoundError: If a pretrained file does not exist.
        ValueError: If `sync_bn` is set for a model with BCN, which that conversion does not reach, or as
            `requested_activation_memory`.
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
    """Return the arguments of `set_activation_memory` that a recipe asks for.

    Raises:
        ValueError: For an unknown mode or key, or together with `compile` or `activation_checkpointing`.
    """
    value = cfg.get('activation_memory', 'all')
    asked = dict(value) if isinstance(value, dict) else dict(mode=value)
    if 'mode' not in asked or not set(asked) <= {'mode', 'modules'}:
        raise ValueError(f"activation_memory={value!r}: a mode or a dict of 'mode' and 'modules' is expected")
    if asked['mode'] not in MODES:
        raise ValueError(f'activation_memory={asked["mode"]!r}: one of {", ".join(MODES)} is expected')
    for other in ('compile', 'activation_checkpointing'):
        if asked['mode'] != 'all' and cfg.get(other):
            raise ValueError(
                f'activation_memory={asked["mode"]!r} with {other}={cfg[other]!r}: both decide what is recomputed; set '
                'one of them'
            )
    return asked


def require_checkpoint(checkpoint: str) -> None:
    """Raise FileNotFoundError for a local checkpoint that does not exist or is a folder."""
    if Path(checkpoint).is_dir():
        raise FileNotFoundError(f'checkpoint {checkpoint!r} is a folder: name a file in it')
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f'checkpoint {checkpoint!r} does not exist')
