"""Bring a checkpoint of another project into a built model: who wrote it, what fits, and what does not.

Nothing loads because two names happen to overlap: every entry of the file and of the model is accounted for, by stage,
and a file of another norm, or one that leaves part of the backbone at its start, is refused.
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
    """'BN', 'GN' or 'BCN'; GN and BCN have 32 groups, and eps is 1e-5 in all of them."""
    variant: str | None
    """Variant of Weight Standardization, None for plain convolutions."""
    marks: Callable[[State], bool] | None = None
    """Whether a file's keys and shapes show that it is of this family; None where they are those of others too."""


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
    """The key in `SOURCES` of the family that a file's keys and shapes show.

    Raises:
        ValueError: If they are those of several families or of none, naming the choices.
    """
    state = join_norm_halves({key.removeprefix('module.'): tensor for key, tensor in state.items()})
    for name, source in SOURCES.items():
        if source.marks and source.marks(state):
            return name
    kinds = Counter(settings['norm'] for settings in fingerprint_of_state(state).values() if 'norm' in settings)
    norm = kinds.most_common(1)[0][0] if kinds else None
    choices = [name for name, source in SOURCES.items() if norm in (None, source.norm)]
    raise ValueError(
        f'the keys of this file (norm: {norm or "none"}) do not show where it comes from, and with it whether its '
        f'filters were trained with Weight Standardization: name its source, one of {", ".join(choices)}'
    )


# For what a file may lack. A missing count, or one of 0 beside statistics that moved (the authors' EstBN never counts),
# is that of an unknown number of batches, past any warm-up; the channel half starts with its neutral affine.
DEFAULTS = {'group_weight': 1, 'group_bias': 0, 'num_batches_tracked': 1_000_000}


class Match(NamedTuple):
    """A file's entries beside a model's."""

    state: dict[str, Tensor]
    """What the model gets, by its own names."""
    table: dict[str, Counter[str]]
    """{stage: how many entries are matched, missing, misshapen (the model's) and left over (the file's)}."""
    missing: list[str]
    """Entries of the model that the file lacks."""
    misshapen: list[str]
    """Entries of the model that have another shape in the file, with both shapes."""
    left_over: list[str]
    """Entries of the file that the model lacks, by the file's names."""
    defaults: list[str]
    """Entries of the model that the file lacks and that have a neutral value (`DEFAULTS`)."""

    def backbone_coverage(self) -> float:
        """Part of the backbone's entries that are matched; of all entries where the model has no backbone by name."""
        stages = [stage for stage in self.table if stage in BACKBONE_STAGES] or list(self.table)
        total = sum((self.table[stage] for stage in stages), Counter[str]())
        wanted = total['matched'] + total['missing'] + total['misshapen']
        return total['matched'] / wanted if wanted else 0.0

    def describe(self) -> str:
        """A line for each stage, then every entry that is not matched, by name."""
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
            said = ', '.join(f'{count} {entry} = {DEFAULTS[entry]}' for entry, count in entries.items())
            lines.append(f'set to neutral values: {said}')
        return '\n'.join(lines)


def match(theirs: State, ours: State) -> Match:
    """Match a file's entries with a model's by what they are (see `layer_names`), not by how they are spelled."""
    theirs = join_norm_halves(theirs)
    return _match(theirs, canonical_names(theirs), ours, canonical_names(ours), DEFAULTS)


def match_by_key(theirs: State, ours: State) -> Match:
    """Match what is spelled the same, which is what `load_state_dict` loads."""
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
    """Whether a norm's count of batches is 0 although its statistics moved."""
    mean = state.get(f'{norm}.running_mean')
    return (
        entry == 'num_batches_tracked' and mean is not None and bool(mean.any()) and not state[f'{norm}.{entry}'].any()
    )


def without_time(state: State) -> dict[str, Tensor]:
    """A 3D network's entries in the shapes of the 2D one it is inflated from: (O, I, T, H, W) -> (O, I, H, W)."""
    return {key: tensor[:, :, 0] if tensor.ndim == 5 else tensor for key, tensor in state.items()}


class Imported(NamedTuple):
    """A checkpoint that became a model's."""

    source: str
    match: Match
    fingerprint: Fingerprint
    """What is known of the file's layers, by the model's names."""
    comparison: Comparison


def import_checkpoint(
    theirs: State, ours: State, layers: Fingerprint, *, source: str | None = None, allow_mismatch: bool = False
) -> Imported:
    """Turn another project's state dict into one of a built model.

    Args:
        theirs: The file's state dict.
        ours: The model's, which gives names and shapes; it is not changed.
        layers: The model's `fingerprint`.
        source: Who wrote the file, a key of `SOURCES`; None finds it from keys and shapes where they tell.
        allow_mismatch: Take what fits from a file of another norm or another WS.

    Raises:
        ValueError: If the source is unknown or not evident, if its networks have norms in front of the convolutions,
            if norms or WS differ from the model's, or if less than 90 % of the backbone is matched.
    """
    if source is None:
        source = identify(theirs)
    elif source not in SOURCES:
        raise ValueError(f'source={source!r} is unknown: choose one of {", ".join(SOURCES)}')
    if source == 'bit':
        theirs = from_bit(theirs)
        if not any('.preactivation.' in name for name in canonical_names(ours).values()):
            raise ValueError(
                'BiT networks have norm and ReLU before each convolution: their filters fit no ResNet whose norms '
                "follow. Import them into timm's resnetv2 with WSConv2d(variant='bit')"
            )
    theirs = join_norm_halves(strip_prefix(theirs))
    known = complete(fingerprint_of_state(theirs), SOURCES[source])
    if SOURCES[source].norm not in (found := {str(layer['norm']) for layer in known.values() if 'norm' in layer}):
        raise ValueError(
            f'source={source!r} has {SOURCES[source].norm}, the file {", ".join(sorted(found)) or "no norm"}: it is '
            'from elsewhere'
        )
    comparison = compare(known, layers)
    if comparison.verdict == 'mismatch' and not allow_mismatch:
        raise ValueError(
            f'the file ({SOURCES[source].title}) is {comparison.theirs}, the model {comparison.ours}: '
            f'{"; ".join(comparison.differences)}. Import it into a model of its own norm and WS variant, or take '
            'what fits with --allow-mismatch'
        )
    if source == 'bcn-deeplab':
        theirs = image_pooling_first(theirs)
    matched = match(theirs, ours)
    refuse_partial(matched)
    return Imported(source, matched, _by_names_of(layers, known), comparison)


def refuse_partial(found: Match, least: float = 0.9) -> None:
    """Raise ValueError where less than this part of the backbone would be loaded."""
    coverage = found.backbone_coverage()
    if coverage < least:
        raise ValueError(
            f'only {100 * coverage:.0f} % of the backbone would be loaded, at least {100 * least:.0f} % are wanted:\n'
            f'{found.describe()}'
        )


def strip_prefix(state: State) -> dict[str, Tensor]:
    """Without the `module.` that torch's DataParallel and DistributedDataParallel put before every key."""
    return {key.removeprefix('module.'): tensor for key, tensor in state.items()}


def complete(layers: Fingerprint, source: Source) -> Fingerprint:
    """A file's layers with what its source is known to have been trained with; classifiers have plain filters."""
    norms: dict[str, dict[str, Value]] = {'GN': {'groups': 32}, 'BCN': {'groups': 32, 'affine': 'group'}, 'BN': {}}
    ws: dict[str, Value] = {'conv': 'plain'}
    if source.variant:
        ws = {'conv': 'WS', 'variant': source.variant, 'eps': VARIANTS[source.variant].eps}
    said: Fingerprint = {}
    for name, settings in layers.items():
        if 'norm' in settings:
            said[name] = {**norms.get(str(settings['norm']), {}), 'eps': 1e-5, **settings}
        else:
            said[name] = {'conv': 'plain'} if CLASSIFIERS.search(name) else ws
    return said


CLASSIFIERS = re.compile(r'(^|\.)(conv_seg|aspp\.conv3|(aux_)?classifier\.4|head\.fc)$')


def _by_names_of(model: Fingerprint, file: Fingerprint) -> Fingerprint:
    """The file's settings under the model's names, for the layers that both have."""
    ours = canonical_names(f'{name}.weight' for name in model)
    theirs = {name: key.removesuffix('.weight') for key, name in canonical_names(f'{n}.weight' for n in file).items()}
    return {name: file[theirs[c]] for name in model if (c := ours[f'{name}.weight']) in theirs}


def image_pooling_first(state: State) -> dict[str, Tensor]:
    """The authors' DeepLabV3 concatenates its pooled branch last, mmsegmentation's first: move its filters' inputs."""
    key = 'aspp.conv2.weight'
    pooled = state['aspp.aspp5.weight'].shape[0]
    return {**state, key: state[key].roll(pooled, dims=1)}


def from_bit(state: State) -> dict[str, Tensor]:
    """BiT's arrays (HWIO filters, `resnet/block1/unit01/a/...`) as OIHW filters by timm's names of `resnetv2`.

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
