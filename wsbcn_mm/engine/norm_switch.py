"""Switch the norm of a recipe: every conv_cfg and norm_cfg of its model at once, checked on the model that they build.

A recipe's norm stands in several places, because configs copy by value. One forgotten place, or one key left of the old
norm, is a model that no name describes.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..surgery.census import breaches, census
from ..surgery.kinds import count_convs, count_norms
from ..surgery.policies import BACKBONE_SUFFIX, get_policy
from ..surgery.trace import trace
from .layer_configs import check_layer_configs, parts_with_norm
from .pretrained import PRETRAINED
from .recipe import dicts_in
from .recipe_model import build_model, input_shape, run_all_parts

OF_ANY_NORM = ('requires_grad', 'eps')
"""Keys of a norm_cfg that every norm has: they stay."""

PRETRAINED_NAME = re.compile(r'_(bn|gn|gn_ws|bn_ws|bcn|bcn_ws)(?=\.\w+$)')
"""Where a recipe's pretrained file says which norm it is of."""


def switch_norm(cfg: Config, norm: str, fragments: Path, *, num_groups: int | None = None) -> list[str]:
    """Rewrite the model of a recipe for another norm, in place.

    The new keys come from the fragment of the norm. `num_groups` of a recipe that has it stays, and so do the keys that
    any norm has, or all keys where the type of the norm stays. Files of pretrained weights that name the old norm are
    exchanged for those of the new one. The model is then built, without memory for its weights, and run once to see
    that every layer is what the name says.

    Args:
        cfg: A recipe.
        norm: One of `wsbcn_mm.surgery.policies.POLICIES`; `-backbone` after it confines WS to the backbone.
        fragments: Folder of the norm fragments.
        num_groups: Of GroupNorm and BatchChannelNorm, in place of the recipe's and the fragment's.

    Returns:
        What was changed, line by line.

    Raises:
        ValueError: For an unknown norm, for keys that a layer does not take, and for a model that does not become what
            the norm's name says, because a part of it does not pass its keys on.
    """
    policy = get_policy(norm)
    check_layer_configs(cfg)
    fragment = Config.fromfile(fragments / f'{norm.removesuffix(BACKBONE_SUFFIX)}.py')
    before = build_model(cfg)

    rewritten, dropped = [], []
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
    if not rewritten:
        raise ValueError('the model of this recipe has no norm_cfg: there is no norm to switch')
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
        *([f'dropped, as the new norm does not have them: {", ".join(dict.fromkeys(dropped))}'] if dropped else []),
        *(f'pretrained weights: {old} -> {new}' for old, new in files.items()),
    ]


def norm_config(old: Mapping[str, Any], wanted: Mapping[str, Any], num_groups: int | None) -> dict[str, Any]:
    """The wanted norm_cfg with what the old one says of any norm, of groups, or of the same type of norm."""
    new = dict(wanted)
    if old['type'] == new['type']:
        new |= {key: value for key, value in old.items() if key != 'statistics'}
    if 'num_groups' in new:
        new['num_groups'] = num_groups or old.get('num_groups') or new['num_groups']
    return new | {key: old[key] for key in OF_ANY_NORM if key in old}


def exchange_pretrained(cfg: Config, norm: str) -> dict[str, str]:
    """Name the pretrained files of another norm, where the file's name says which norm it is of; returns old: new."""
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
