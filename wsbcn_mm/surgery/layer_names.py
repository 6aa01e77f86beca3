"""Canonical names for the layers of residual networks, for the naming schemes of several projects.

    conv1.conv.weight   conv1.norm.running_mean   layer1.0.conv2.conv.weight   layer2.0.downsample.norm.bias

Both torchvision's `conv1.weight`, `bn1.running_mean`, ... and mmaction2's `conv1.conv.weight`, `conv1.bn.running_mean`,
... map to these names, so that a file and a model are matched layer by layer. A norm is `norm` whatever its kind. A
deep stem is `stem.conv1` to `stem.conv3`. A factorised convolution has `conv.conv_s`, `conv.norm_s` and `conv.conv_t`.
The prefixes `module.` and `backbone.` are dropped. Names of heads follow mmsegmentation, and a linear classifier is
`fc`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

Rules = Sequence[tuple[str, str]]


class Naming(NamedTuple):
    """Naming scheme of one family of networks."""

    mark: str
    """Pattern that identifies the family: one of its keys matches."""
    rules: Rules
    """Patterns and replacements, applied in this order before the common rules."""


PREFIXES: Rules = [(r'^(?:module\.)?(?:backbone\.)?', '')]

BLOCKS: Rules = [
    (r'\bdownsample\.0\.', 'downsample.conv.'),
    (r'\bdownsample\.1\.', 'downsample.norm.'),
    (r'\bconv(\d)\.weight$', r'conv\1.conv.weight'),
    (r'\b(?:bn|gn|norm)(\d)\.', r'conv\1.norm.'),
    (r'\b(?:bn|gn|norm)_s\.', 'norm_s.'),
    (r'\.(?:bn|gn)\.', '.norm.'),
]

HEADS: Rules = [(r'^(?:cls_head\.fc_cls|head\.fc)\.', 'fc.')]

AVG_DOWN: Rules = [
    # an average pool first, as in ResNet-D
    (r'\bdownsample\.1\.', 'downsample.conv.'),
    (r'\bdownsample\.2\.', 'downsample.norm.'),
]

AUTHORS_ASPP: Rules = [
    *((rf'^aspp\.aspp{i + 1}\.', f'decode_head.aspp_modules.{i}.conv.') for i in range(4)),
    *((rf'^aspp\.aspp{i + 1}_bn\.', f'decode_head.aspp_modules.{i}.norm.') for i in range(4)),
    (r'^aspp\.aspp5\.', 'decode_head.image_pool.1.conv.'),
    (r'^aspp\.aspp5_bn\.', 'decode_head.image_pool.1.norm.'),
    (r'^aspp\.conv2\.', 'decode_head.bottleneck.conv.'),
    (r'^aspp\.bn2\.', 'decode_head.bottleneck.norm.'),
    (r'^aspp\.conv3\.', 'decode_head.conv_seg.'),
]

NAMINGS = {
    'torchvision video, R(2+1)D': Naming(
        r'\.conv1\.0\.3\.weight$',
        [
            (r'^stem\.0\.', 'conv1.conv.conv_s.'),
            (r'^stem\.1\.', 'conv1.conv.norm_s.'),
            (r'^stem\.3\.', 'conv1.conv.conv_t.'),
            (r'^stem\.4\.', 'conv1.norm.'),
            (r'\.conv(\d)\.0\.0\.', r'.conv\1.conv.conv_s.'),
            (r'\.conv(\d)\.0\.1\.', r'.conv\1.conv.norm_s.'),
            (r'\.conv(\d)\.0\.3\.', r'.conv\1.conv.conv_t.'),
            (r'\.conv(\d)\.0\.', r'.conv\1.conv.'),
            (r'\.conv(\d)\.1\.', r'.conv\1.norm.'),
        ],
    ),
    'torchvision video': Naming(
        r'\.conv1\.0\.weight$',
        [
            (r'^stem\.0\.', 'conv1.conv.'),
            (r'^stem\.1\.', 'conv1.norm.'),
            (r'\.conv(\d)\.0\.', r'.conv\1.conv.'),
            (r'\.conv(\d)\.1\.', r'.conv\1.norm.'),
        ],
    ),
    'torchvision segmentation': Naming(
        r'^classifier\.',
        [
            (r'^aux_classifier\.0\.', 'auxiliary_head.convs.0.conv.'),
            (r'^aux_classifier\.1\.', 'auxiliary_head.convs.0.norm.'),
            (r'^aux_classifier\.4\.', 'auxiliary_head.conv_seg.'),
        ],
    ),
    "the BCN authors' DeepLabV3": Naming(r'^aspp\.', AUTHORS_ASPP),
    'mmaction2': Naming(r'^conv1\.conv\.', []),
    'timm, pre-activation': Naming(
        # A separate scheme: these norms do not follow the convolutions of the same number.
        r'^stages\.0\.blocks\.0\.norm1\.',
        [
            *((rf'^stages\.{i}\.blocks\.(\d+)\.', rf'layer{i + 1}.\1.preactivation.') for i in range(4)),
            (r'^stem\.conv\.', 'conv1.conv.'),
        ],
    ),
    'timm, deep stem': Naming(
        r'^conv1\.0\.weight$',
        [
            *((rf'^conv1\.{3 * i}\.', f'stem.conv{i + 1}.conv.') for i in range(3)),
            *((rf'^conv1\.{3 * i + 1}\.', f'stem.conv{i + 1}.norm.') for i in range(2)),
            (r'^bn1\.', 'stem.conv3.norm.'),
        ],
    ),
    'OpenMMLab, deep stem': Naming(
        r'^stem\.0\.weight$',
        [
            *((rf'^stem\.{3 * i}\.', f'stem.conv{i + 1}.conv.') for i in range(3)),
            *((rf'^stem\.{3 * i + 1}\.', f'stem.conv{i + 1}.norm.') for i in range(3)),
        ],
    ),
}
"""Naming schemes. The first whose mark matches a key applies; without a match, torchvision's and mmseg's names do."""


def canonical_names(keys: Iterable[str]) -> dict[str, str]:
    """Return {key of a state dict: its canonical name}; give all keys of a file or of a model at once."""
    plain = {key: rename(key, PREFIXES) for key in keys}
    found = (n for n in NAMINGS.values() if any(re.search(n.mark, name) for name in plain.values()))
    rules = [*next(found, Naming('', [])).rules]
    if any('downsample.2.' in name for name in plain.values()):
        rules += AVG_DOWN
    return {key: rename(name, [*rules, *BLOCKS, *HEADS]) for key, name in plain.items()}


def rename(name: str, rules: Rules) -> str:
    """Apply every rule to `name`, in order.

    >>> rename('layer1.0.bn2.weight', BLOCKS)
    'layer1.0.conv2.norm.weight'
    """
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


BACKBONE_STAGES = ('stem', 'layer1', 'layer2', 'layer3', 'layer4')


def stage_of(name: str) -> str:
    """Return the part of the network that a key of any scheme belongs to: one of BACKBONE_STAGES, or a head."""
    first = rename(name, PREFIXES).split('.')[0]
    return 'stem' if re.fullmatch(r'(conv|bn|gn|norm)1', first) else first


def join_norm_halves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the BCN authors' entries of a state dict to `BatchChannelNorm`'s names; keep all others.

    In their code (`GN` and `PBCNorm` in joe-siyuan-qiao/Batch-Channel-Normalization, `BCNorm` in its README) the batch
    half is a child `pbn` or `bn`. The affine of the channel half is (1, G, 1), under the names of the batch half's
    affine here.
    """
    halves = {m[1]: m[0] for key in state if (m := re.match(r'(.+)\.p?bn(?=\.running_mean$)', key))}
    halves = {norm: half for norm, half in halves.items() if is_group_affine(state.get(f'{norm}.weight'))}
    joined = {}
    for key, tensor in state.items():
        layer, _, entry = key.rpartition('.')
        if layer in halves and entry in ('weight', 'bias'):
            joined[f'{layer}.group_{entry}'] = tensor.flatten()
        elif layer in halves.values():
            joined[f'{layer.rpartition(".")[0]}.{entry}'] = tensor
        else:
            joined[key] = tensor
    return joined


def is_group_affine(tensor: Tensor | None) -> bool:
    """Return whether this is a (1, G, 1) scale of the authors' channel half."""
    return tensor is not None and tensor.ndim == 3 and tensor.shape[0] == tensor.shape[2] == 1
