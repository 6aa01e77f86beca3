"""Switch the norm of a recipe: rewrite every conv_cfg and norm_cfg of its model, and check the model that they build.

A recipe has its norm in several places, because configs copy by value. One missed place, or one key left from the old
norm, gives a model that no name describes.
"""

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ...surgery.census import breaches, census
from ...surgery.kinds import CONVS, count_convs, count_norms
from ...surgery.policies import BACKBONE_SUFFIX, get_policy
from ...surgery.trace import trace
from .model import build_model, input_shape, run_all_parts
from .tree import PRETRAINED, dicts_in

STANDARDISED = ('ConvWS', 'ConvAWS', 'WSConv1d', 'WSConv2d', 'WSConv3d')
PLAIN = ('Conv', 'Conv1d', 'Conv2d', 'Conv3d')

FRAGMENTS = Path(__file__).parents[2] / '.mim' / 'configs' / '_base_' / 'norms'

OF_ANY_NORM = ('requires_grad', 'eps')
"""Keys of a norm_cfg that every norm has. They are kept."""

PRETRAINED_NAME = re.compile(r'_(bn|gn|gn_ws|bn_ws|bcn|bcn_ws)(?=\.\w+$)')
"""The part of the name of a pretrained file that is its norm."""


def switch_norm(cfg: Config, norm: str, fragments: Path = FRAGMENTS, *, num_groups: int | None = None) -> list[str]:
    """Rewrite the model of a recipe for another norm, in place.

    The new keys come from the fragment of the norm. The recipe's `num_groups` and the keys that every norm has are
    kept. All keys are kept if the type of the norm does not change. Pretrained files with the old norm in their name
    are replaced by those of the new norm. The model is then built on the meta device and run once, to check that every
    layer is what the name promises.

    Args:
        cfg: A recipe.
        norm: One of `wsbcn_mm.surgery.policies.POLICIES`. The suffix `-backbone` limits WS to the backbone.
        fragments: Folder of the norm fragments.
        num_groups: Groups of GroupNorm and BatchChannelNorm; by default the recipe's, else the fragment's.

    Returns:
        The changes, one per line.

    Raises:
        ValueError: For an unknown norm, for keys that a layer does not accept, and for a model that differs from the
            norm's name, because a part does not pass its keys on.
    """
    policy = get_policy(norm)
    check_layer_configs(cfg)
    fragment = Config.fromfile(fragments / f'{norm.removesuffix(BACKBONE_SUFFIX)}.py')
    before = build_model(cfg)

    rewritten, dropped, kept = [], [], []
    for path, part in parts_with_norm(cfg.model):
        old_norm, old_conv = part['norm_cfg'], part.get('conv_cfg')
        axes = '_3d' if any(str((old or {}).get('type')).endswith('3d') for old in (old_norm, old_conv)) else ''
        part['norm_cfg'] = new_norm = norm_config(old_norm, fragment[f'norm_cfg{axes}'], num_groups)
        dropped += [f'{key}={value!r}' for key, value in old_norm.items() if key not in new_norm]
        if policy.wants_ws(path.removeprefix('model.')):
            part['conv_cfg'] = dict(fragment[f'conv_cfg{axes}'])
        elif old_conv is not None:
            part['conv_cfg'] = dict(type='Conv3d' if axes else 'Conv2d')
        rewritten.append(path)
        if new_norm['type'] == 'BCN' and zeroes_last_norms(cfg, part):
            part['zero_init_residual'] = False
            kept.append(f'{path}.zero_init_residual=False')
    if not rewritten:
        raise ValueError('the model of this recipe has no norm_cfg: --norm needs one')
    for key in fragment:
        if key in cfg:
            cfg[key] = fragment[key]
    files = exchange_pretrained(cfg, norm)

    model = build_model(cfg)
    found = census(model, trace(model, run_all_parts(model, input_shape(cfg, batch_size=2))))
    wrong = breaches(found, policy)
    if wrong:
        raise ValueError(f'--norm {norm} does not reach every layer: {"; ".join(wrong)}')
    return [
        f'norms: {_counts(count_norms(before))} -> {_counts(count_norms(model))}',
        f'convolutions: {_counts(count_convs(before))} -> {_counts(count_convs(model))}',
        f'rewritten: {", ".join(rewritten)}',
        *([f'dropped, not keys of the new norm: {", ".join(dict.fromkeys(dropped))}'] if dropped else []),
        *([f'{", ".join(kept)}: the host would zero the weight of BCN, which is not its output scale'] if kept else []),
        *(f'pretrained weights: {old} -> {new}' for old, new in files.items()),
    ]


def check_layer_configs(cfg: Config) -> None:
    """Reject a conv_cfg or norm_cfg with a key that its layer does not accept, such as one left from another layer.

    Raises:
        ValueError: For such a key, for an unknown type, and for a convolution that is neither plain nor standardised.
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
    for base in layer.__mro__:  # A class may pass **kwargs on to its bases.
        known.update(inspect.signature(vars(base).get('__init__', object)).parameters)
    unknown = [key for key in layer_cfg if key not in known]
    if unknown:
        raise ValueError(f'{path}: {kind} does not accept {", ".join(unknown)}: remove keys of another layer')
    if issubclass(layer, CONVS) and kind not in (*PLAIN, *STANDARDISED):
        raise ValueError(f'{path}: {kind!r} is neither a plain nor a standardised convolution')


def parts_with_norm(node: Any, path: str = 'model') -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and dict of every part of a model config that has a norm_cfg."""
    if isinstance(node, dict):
        if isinstance(node.get('norm_cfg'), dict):
            yield path, node
        for key, child in node.items():
            if key not in ('norm_cfg', 'conv_cfg'):
                yield from parts_with_norm(child, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from parts_with_norm(child, f'{path}.{i}')


def norm_config(old: Mapping[str, Any], wanted: Mapping[str, Any], num_groups: int | None) -> dict[str, Any]:
    """Return the wanted norm_cfg, with the old keys of every norm, of groups, and of the same type of norm."""
    new = dict(wanted)
    if old['type'] == new['type']:
        same = old.get('statistics') == new.get('statistics')
        # `warmup` applies to estimated statistics. Fragments of the other kinds omit it.
        stays = [key for key in old if key != 'statistics' and (same or key != 'warmup')]
        new |= {key: old[key] for key in stays}
    if 'num_groups' in new:
        new['num_groups'] = num_groups or old.get('num_groups') or new['num_groups']
    return new | {key: old[key] for key in OF_ANY_NORM if key in old}


def zeroes_last_norms(cfg: Config, part: Mapping[str, Any]) -> bool:
    """Return whether a host's backbone zeroes the weight of each block's last norm; ours zero BCN's output scale."""
    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope')),
        MODELS.switch_scope_and_registry(None) as known,
    ):
        layer = known.get(str(part.get('type')))
    if layer is None or layer.__module__.startswith('wsbcn_mm.'):
        return False
    if 'zero_init_residual' in part:
        return bool(part['zero_init_residual'])
    signatures = (inspect.signature(vars(base).get('__init__', object)).parameters for base in layer.__mro__)
    return any(found['zero_init_residual'].default is True for found in signatures if 'zero_init_residual' in found)


def exchange_pretrained(cfg: Config, norm: str) -> dict[str, str]:
    """Replace pretrained files whose names contain a norm by those of `norm`. Return {old: new}."""
    ours = norm.removesuffix(BACKBONE_SUFFIX).replace('syncbn', 'bn').replace('bcnsync', 'bcn').replace('-', '_')
    files: dict[str, str] = {}
    for node in dicts_in(cfg.model):
        if node.get('type') in PRETRAINED and PRETRAINED_NAME.search(str(node.get('checkpoint'))):
            old = node['checkpoint']
            node['checkpoint'] = PRETRAINED_NAME.sub(f'_{ours}', old)
            if node['checkpoint'] != old:
                files[old] = node['checkpoint']
    return files


def _counts(counts: Counter[str]) -> str:
    return ', '.join(f'{count} {kind}' for kind, count in sorted(counts.items())) or 'none'
