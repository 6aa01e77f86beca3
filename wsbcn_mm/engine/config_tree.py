"""A config as a tree of dicts."""

from collections.abc import Iterator
from typing import Any


def dicts_in(node: Any) -> Iterator[dict]:
    """Every dict in a config, the outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts_in(child)
