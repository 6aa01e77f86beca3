"""A config as a tree of dicts, and what stands in it: hooks, and files that parts of the model start from."""

from collections.abc import Iterator
from typing import Any

from torch import nn

PRETRAINED = ('Pretrained', 'Inflated2d')
"""Types of an init_cfg that start from a checkpoint."""


def dicts_in(node: Any) -> Iterator[dict]:
    """Yield every dict in a config, the outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts_in(child)


def places_of(value: Any, node: Any, path: str = '') -> Iterator[str]:
    """Yield the paths at which a value stands in a config, such as 'model.backbone.norm_cfg'."""
    if path and node == value:
        yield path
        return
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, child in children:
        yield from places_of(value, child, f'{path}.{key}' if path else str(key))


def hooks_in(cfg: dict) -> list[dict]:
    """Return every hook that a config gives as a dict, those of `default_hooks` first."""
    named = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    return [hook for hook in named if isinstance(hook, dict)]


def pretrained_parts(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Yield every part of a built model that starts from a file, with the init_cfg that names the file."""
    for module in model.modules():
        inits = getattr(module, 'init_cfg', None) or []
        for init in [inits] if isinstance(inits, dict) else inits:
            if init.get('type') in PRETRAINED:
                yield module, init


def drop_pretrained(cfg: Any) -> None:
    """Remove every pretrained file from a model's config, so that the model starts from random weights."""
    for node in dicts_in(cfg.model):
        if isinstance(node.get('pretrained'), str):  # the older form, which mmsegmentation's own configs have
            node['pretrained'] = None
        init = node.get('init_cfg')
        if isinstance(init, dict) and init.get('type') in PRETRAINED:
            node['init_cfg'] = None
        elif isinstance(init, (list, tuple)):
            node['init_cfg'] = [one for one in init if one.get('type') not in PRETRAINED]
