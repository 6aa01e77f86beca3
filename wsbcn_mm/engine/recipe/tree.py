"""A config as a tree of dicts."""

from collections.abc import Iterator
from typing import Any

from torch import nn


def dicts_in(node: Any) -> Iterator[dict]:
    """Every dict in a config, the outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts_in(child)


def hooks_in(cfg: dict) -> list[dict]:
    """Every hook that a config names as a dict, those of `default_hooks` first."""
    named = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    return [hook for hook in named if isinstance(hook, dict)]


def places_of(value: Any, node: Any, path: str = '') -> Iterator[str]:
    """Where a value stands in a config, as 'model.backbone.norm_cfg'."""
    if path and node == value:
        yield path
        return
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in children:
        yield from places_of(value, child, f'{path}.{key}' if path else str(key))


PRETRAINED = ('Pretrained', 'Inflated2d')
"""Types of an init_cfg that start from a checkpoint."""


def pretrained_parts(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Every part of a built model that starts from a file, with the init_cfg that names it."""
    for module in model.modules():
        inits = getattr(module, 'init_cfg', None) or []
        for init in [inits] if isinstance(inits, dict) else inits:
            if init.get('type') in PRETRAINED:
                yield module, init
