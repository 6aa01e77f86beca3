"""Which parts of a model start from a file."""

from collections.abc import Iterator
from typing import Any

from torch import nn

PRETRAINED = ('Pretrained', 'Inflated2d')
"""Types of an init_cfg that start from a checkpoint."""


def pretrained_parts(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Every part of a built model that starts from a file, with the init_cfg that names it."""
    for module in model.modules():
        inits = getattr(module, 'init_cfg', None) or []
        for init in [inits] if isinstance(inits, dict) else inits:
            if init.get('type') in PRETRAINED:
                yield module, init
