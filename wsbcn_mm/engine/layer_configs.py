"""The conv_cfg and norm_cfg of a model's config: where they are, and that their layers take every key of them."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ..surgery.kinds import CONVS

STANDARDISED = ('ConvWS', 'ConvAWS', 'WSConv1d', 'WSConv2d', 'WSConv3d')
PLAIN = ('Conv', 'Conv1d', 'Conv2d', 'Conv3d')


def parts_with_norm(node: Any, path: str = 'model') -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and dict of every part of a model config that has a norm_cfg."""
    if isinstance(node, dict):
        if isinstance(node.get('norm_cfg'), dict):
            yield path, node
        for key, child in node.items():
            if key not in ('norm_cfg', 'conv_cfg'):
                yield from parts_with_norm(child, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from parts_with_norm(child, f'{path}.{i}')


def check_layer_configs(cfg: Config) -> None:
    """Refuse a conv_cfg or norm_cfg of the model with a key that its layer does not take, left of another one.

    Raises:
        ValueError: For such a key, an unknown type, or a convolution that is neither plain nor standardised.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for path, part in parts_with_norm(cfg.model):
            for name in ('norm_cfg', 'conv_cfg'):
                if isinstance(part.get(name), dict):
                    _check_layer_config(f'{path}.{name}', part[name])


def _check_layer_config(path: str, layer_cfg: Mapping[str, Any]) -> None:
    kind = layer_cfg.get('type')
    with MODELS.switch_scope_and_registry(None) as registry:
        layer = kind if inspect.isclass(kind) else registry.get(str(kind))
    if layer is None:
        raise ValueError(f'{path}: no layer is registered as {kind!r}')
    known = {'type', 'requires_grad'}
    for base in layer.__mro__:  # what a class hands on as **kwargs, its bases take
        known.update(inspect.signature(vars(base).get('__init__', object)).parameters)
    unknown = [key for key in layer_cfg if key not in known]
    if unknown:
        raise ValueError(f'{path}: {kind} takes no {", ".join(unknown)}; was it left of another layer?')
    if issubclass(layer, CONVS) and kind not in (*PLAIN, *STANDARDISED):
        raise ValueError(f'{path}: {kind!r} is neither a plain nor a standardised convolution')
