"""Import a checkpoint of another project into a built model: identify its source, match it, and report what differs.

Names that merely happen to overlap never decide. Every entry of the file and of the model is accounted for, by stage.
A file with another norm is rejected, and so is one that would leave part of the backbone at its initial values.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.ws.weight_standardization import VARIANTS
from .fingerprint import Comparison, Fingerprint, Value, compare, fingerprint_of_state
from .layer_names import BACKBONE_STAGES, Rules, canonical_names, join_norm_halves, rename, stage_of

State = Mapping[str, Tensor]


class Source(NamedTuple):
    """A family of public files, and how its networks were trained."""

    title: str
    norm: str
    """'BN', 'GN' or 'BCN'. GN and BCN have 32 groups; eps is 1e-5 for all."""
    variant: str | None
    """Variant of Weight Standardization; None for plain convolutions."""
    marks: Callable[[State], bool] | None = None
    """Whether a file's keys and shapes identify this family; None if other families have the same keys and shapes."""


def _has(pattern: str) -> Callable[[State], bool]:
    return lambda state: any(re.search(pattern, key) for key in state)


def _is_bcn(state: State) -> bool:
    return any(key.endswith('.group_weight') for key in state)


def _is_plain_resnet(state: State) -> bool:
    return 'bn1.running_mean' in state and 'fc.weight' in state and not _is_bcn(state)


SOURCES = {
    'bcn-deeplab': Source(
        "the BCN authors' DeepLabV3", 'BCN', 'jhu', lambda state: _is_bcn(state) and _has(r'^aspp\.')(state)
    ),
    'bcn-imagenet': Source(
        "the BCN authors' ImageNet files", 'BCN', 'bcn', lambda state: _is_bcn(state) and _has(r'^fc\.')(state)
    ),
    'jhu-gn-ws': Source("the WS authors' GN + WS files and OpenMMLab's copies (jhu/resnet50_gn_ws)", 'GN', 'jhu'),
    'openmmlab-gn': Source("OpenMMLab's detectron/resnet50_gn and contrib/resnet50_gn", 'GN', None),
    'timm-gn': Source("timm's resnet50_gn", 'GN', None),
    'bit': Source('BiT (big_transfer)', 'GN', 'bit', _has(r'standardized_conv2d/')),
    'torchvision': Source("torchvision's and timm's ResNets", 'BN', None, _is_plain_resnet),
    'torchvision-segmentation': Source("torchvision's DeepLabV3 and FCN", 'BN', None, _has(r'^classifier\.')),
    'torchvision-video': Source("torchvision's video ResNets", 'BN', None, _has(r'\.conv1\.0\.(3\.)?weight$')),
    'mmaction2': Source("mmaction2's ResNet3d", 'BN', None, _has(r'^cls_head\.')),
    'openmmlab': Source("mmsegmentation's and mmpretrain's ResNets", 'BN', None),
}


def identify(state: State) -> str:
    """Return the key in `SOURCES` of the family that a file's keys and shapes identify.

    Raises:
        ValueError: If they fit several families or none. The error names the choices.
    """
    state = join_norm_halves({key.removeprefix('module.'): tensor for key, tensor in state.items()})
    for name, source in SOURCES.items():
        if source.marks and source.marks(state):
            return name
    kinds = Counter(settings['norm'] for settings in fingerprint_of_state(state).values() if 'norm' in settings)
    norm = kinds.most_common(1)[0][0] if kinds else None
    choices = [name for name, source in SOURCES.items() if norm in (None, source.norm)]
    raise ValueError(
        f'the keys of this file (norm: {norm or "none"}) do not show where it comes from, nor whether its filters were '
        f'trained with Weight Standardization: name its source, one of {", ".join(choices)}'
    )


# Values of entries that a file may lack. A missing count, or a count of 0 although statistics moved (the authors' EstBN
# never counts), stands for an unknown number of batches after any warm-up. The channel half starts as the identity.
DEFAULTS = {'group_weight': 1, 'group_bias': 0, 'num_batches_tracked': 1_000_000}


class Match(NamedTuple):
    """Match between the entries of a file and of a model."""

    state: dict[str, Tensor]
    """Entries for the model, by the model's names."""
    table: dict[str, Counter[str]]
    """{stage: number of entries that are matched, missing, misshapen (the model's) and left over (the file's)}."""
    missing: list[str]
    """Entries of the model that the file lacks."""
    misshapen: list[str]
    """Entries of the model that have another shape in the file, with both shapes."""
    left_over: list[str]
    """Entries of the file that the model lacks, by the file's names."""
    defaults: list[str]
    """Entries of the model that the file lacks and that get a neutral value (`DEFAULTS`)."""

    def backbone_coverage(self) -> float:
        """Return the share of matched backbone entries, or of all entries if no stage has a backbone's name."""
        stages = [stage for stage in self.table if stage in BACKBONE_STAGES] or list(self.table)
        total = sum((self.table[stage] for stage in stages), Counter[str]())
        wanted = total['matched'] + total['missing'] + total['misshapen']
        return total['matched'] / wanted if wanted else 0.0

    def describe(self) -> str:
        """Return one line per stage, then the names of all entries that are not matched."""
        width = max([len('stage'), *map(len, self.table)])
        columns = ('matched', 'missing', 'misshapen', 'left over')
        lines = ['  '.join(['stage'.ljust(width), *columns])]
        for stage, counts in self.table.items():
            lines.append('  '.join([stage.ljust(width), *(str(counts[name]).rjust(len(name)) for name in columns)]))
        for title, names in (
            ('missing in the file', self.missing),
            ('of another shape', self.misshapen),
            ('left over in the file', self.left_over),
        ):
            lines += [f'{title}: {", ".join(names)}'] if names else []
        if self.defaults:
            entries = Counter(name.rpartition('.')[2] for name in self.defaults)
            values = ', '.join(f'{count} {entry} = {DEFAULTS[entry]}' for entry, count in entries.items())
            lines.append(f'set to neutral values: {values}')
        return '\n'.join(lines)


def match(theirs: State, ours: State) -> Match:
    """Match a file's entries with a model's by their canonical names (see `layer_names`)."""
    theirs = join_norm_halves(theirs)
    return _match(theirs, canonical_names(theirs), ours, canonical_names(ours), DEFAULTS)


def match_by_key(theirs: State, ours: State) -> Match:
    """Match entries with equal keys, as `load_state_dict` does."""
    return _match(theirs, {key: key for key in theirs}, ours, {key: key for key in ours}, {})


def _match(
    theirs: State,
    their_names: Mapping[str, str],
    ours: State,
    our_names: Mapping[str, str],
    defaults: Mapping[str, int],
) -> Match:
    by_name = {name: theirs[key] for key, name in their_names.items()}
    result = Match({}, {}, [], [], [], [])
    for key, name in our_names.items():
        counts = result.table.setdefault(stage_of(name), Counter())
        layer, _, entry = name.rpartition('.')
        tensor = by_name.get(name)
        if (
            entry in defaults
            and f'{layer}.weight' in by_name
            and (tensor is None or _is_uncounted(layer, entry, by_name))
        ):
            result.state[key] = torch.full_like(ours[key], defaults[entry])
            result.defaults.append(key)
        elif tensor is None:
            counts['missing'] += 1
            result.missing.append(key)
        elif tensor.shape != ours[key].shape:
            counts['misshapen'] += 1
            result.misshapen.append(f'{key} {tuple(tensor.shape)}, must be {tuple(ours[key].shape)}')
        else:
            counts['matched'] += 1
            result.state[key] = tensor
    known = set(our_names.values())
    for key, name in their_names.items():
        if name not in known:
            result.table.setdefault(stage_of(name), Counter())['left over'] += 1
            result.left_over.append(key)
    return result


def _is_uncounted(norm: str, entry: str, state: State) -> bool:
    """Return whether a norm's count of batches is 0 although its statistics moved."""
    mean = state.get(f'{norm}.running_mean')
    return (
        entry == 'num_batches_tracked' and mean is not None and bool(mean.any()) and not state[f'{norm}.{entry}'].any()
    )


def without_time(state: State) -> dict[str, Tensor]:
    """Return a 3D network's entries in the shapes of its 2D original: (O, I, T, H, W) -> (O, I, H, W)."""
    return {key: tensor[:, :, 0] if tensor.ndim == 5 else tensor for key, tensor in state.items()}


class Imported(NamedTuple):
    """A checkpoint imported into a model."""

    source: str
    match: Match
    fingerprint: Fingerprint
    """Known settings of the file's layers, by the model's names."""
    comparison: Comparison


def import_checkpoint(
    theirs: State, ours: State, layers: Fingerprint, *, source: str | None = None, allow_mismatch: bool = False
) -> Imported:
    """Convert another project's state dict to that of a built model.

    Args:
        theirs: State dict of the file.
        ours: State dict of the model, for names and shapes; it is not changed.
        layers: The model's `fingerprint`.
        source: Family of the file, a key of `SOURCES`; None identifies it from keys and shapes.
        allow_mismatch: Whether to import matching entries from a file with another norm or another WS.

    Raises:
        ValueError: If the source is unknown or cannot be identified, its networks have norms before the convolutions,
            norms or WS differ from the model's, or less than 90 % of the backbone is matched.
    """
    if source is None:
        source = identify(theirs)
    elif source not in SOURCES:
        raise ValueError(f'source={source!r}: one of {", ".join(SOURCES)} is expected')
    if source == 'bit':
        theirs = from_bit(theirs)
        if not any('.preactivation.' in name for name in canonical_names(ours).values()):
            raise ValueError(
                'BiT networks have norm and ReLU before each convolution: their filters do not fit a ResNet, whose '
                "norms follow the convolutions. Import them into timm's resnetv2 with WSConv2d(variant='bit')"
            )
    theirs = join_norm_halves(strip_prefix(theirs))
    known = complete(fingerprint_of_state(theirs), SOURCES[source])
    if SOURCES[source].norm not in (found := {str(layer['norm']) for layer in known.values() if 'norm' in layer}):
        raise ValueError(
            f'source={source!r} has {SOURCES[source].norm}, but the file has {", ".join(sorted(found)) or "no norm"}: '
            'name the source that wrote it'
        )
    comparison = compare(known, layers)
    if comparison.verdict == 'mismatch' and not allow_mismatch:
        raise ValueError(
            f'the file ({SOURCES[source].title}) is {comparison.theirs}, the model {comparison.ours}: '
            f'{"; ".join(comparison.differences)}. Import it into a model with the same norm and WS variant, or import '
            'only matching entries with --allow-mismatch'
        )
    if source == 'bcn-deeplab':
        theirs = image_pooling_first(theirs)
    matched = match(theirs, ours)
    refuse_partial(matched)
    return Imported(source, matched, _by_names_of(layers, known), comparison)


def refuse_partial(found: Match, least: float = 0.9) -> None:
    """Raise ValueError if less than this share of the backbone would be loaded."""
    coverage = found.backbone_coverage()
    if coverage < least:
        raise ValueError(
            f'only {100 * coverage:.0f} % of the backbone would be loaded, at least {100 * least:.0f} % are required:\n'
            f'{found.describe()}'
        )


def strip_prefix(state: State) -> dict[str, Tensor]:
    """Remove the prefix `module.` that torch's DataParallel and DistributedDataParallel put before every key."""
    return {key.removeprefix('module.'): tensor for key, tensor in state.items()}


def complete(layers: Fingerprint, source: Source) -> Fingerprint:
    """Add the known settings of a file's source to its layers; classifiers have plain filters."""
    norms: dict[str, dict[str, Value]] = {'GN': {'groups': 32}, 'BCN': {'groups': 32, 'affine': 'group'}, 'BN': {}}
    ws: dict[str, Value] = {'conv': 'plain'}
    if source.variant:
        ws = {'conv': 'WS', 'variant': source.variant, 'eps': VARIANTS[source.variant].eps}
    completed: Fingerprint = {}
    for name, settings in layers.items():
        if 'norm' in settings:
            completed[name] = {**norms.get(str(settings['norm']), {}), 'eps': 1e-5, **settings}
        else:
            completed[name] = {'conv': 'plain'} if CLASSIFIERS.search(name) else ws
    return completed


CLASSIFIERS = re.compile(r'(^|\.)(conv_seg|aspp\.conv3|(aux_)?classifier\.4|head\.fc)$')


def _by_names_of(model: Fingerprint, file: Fingerprint) -> Fingerprint:
    """Return the file's settings under the model's names, for the layers that both have."""
    ours = canonical_names(f'{name}.weight' for name in model)
    theirs = {name: key.removesuffix('.weight') for key, name in canonical_names(f'{n}.weight' for n in file).items()}
    return {name: file[theirs[c]] for name in model if (c := ours[f'{name}.weight']) in theirs}


def image_pooling_first(state: State) -> dict[str, Tensor]:
    """Move the inputs of the pooled branch: the authors' DeepLabV3 concatenates it last, mmsegmentation first."""
    key = 'aspp.conv2.weight'
    pooled = state['aspp.aspp5.weight'].shape[0]
    return {**state, key: state[key].roll(pooled, dims=1)}


def from_bit(state: State) -> dict[str, Tensor]:
    """Convert BiT's arrays (HWIO filters, `resnet/block1/unit01/a/...`) to OIHW filters with timm's `resnetv2` names.

    Source: the tables of google-research/big_transfer's `bit_pytorch/models.py`.
    """
    return {
        rename(BIT_UNIT.sub(lambda m: f'stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}.', key), BIT_TO_TIMM): (
            tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
        )
        for key, tensor in state.items()
    }


BIT_UNIT = re.compile(r'^resnet/block(\d)/unit(\d+)/')
BIT_TO_TIMM: Rules = [
    (r'\ba/proj/standardized_conv2d/', 'downsample.conv.'),
    *((rf'\b{letter}/group_norm/', f'norm{i}.') for i, letter in enumerate('abc', 1)),
    *((rf'\b{letter}/standardized_conv2d/', f'conv{i}.') for i, letter in enumerate('abc', 1)),
    (r'^resnet/root_block/standardized_conv2d/', 'stem.conv.'),
    (r'^resnet/group_norm/', 'norm.'),
    (r'^resnet/head/conv2d/', 'head.fc.'),
    (r'(kernel|gamma)$', 'weight'),
    (r'beta$', 'bias'),
]
