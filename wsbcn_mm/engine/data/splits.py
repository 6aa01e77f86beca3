"""Split samples into training, validation and test parts at random, but evenly by class and never through a source."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..files import sha256

TRAIN = 'train'


def stratified_split(
    labels: Sequence[str], sources: Sequence[str], shares: Mapping[str, float], seed: int = 0
) -> list[str]:
    """Return the split of each sample: a name in `shares`, or 'train' for the rest.

    Samples of one source stay together. Each class gets its share of every split as closely as its sources allow, and
    at least one sample per split if it has enough of them. The result depends on the names and the seed only.

    Args:
        labels: Class of each sample.
        sources: What each sample was cut from; different names where all samples are independent.
        shares: Share of the samples of each split but 'train', such as {'val': 0.2}.
        seed: Seed of the random order.

    Raises:
        ValueError: For shares that are negative or leave nothing for training.
    """
    check_shares(shares)
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for label, source in zip(labels, sources, strict=True):
        members[source][label] += 1
    of_class = Counter(labels)
    independent = Counter(label for counts in members.values() for label in counts)
    open_places = {TRAIN: {label: float(count) for label, count in of_class.items()}}
    for split, share in shares.items():
        open_places[split] = {}
        for label, count in of_class.items():
            enough = independent[label] > len([one for one in shares.values() if one])
            open_places[split][label] = max(share * count, float(enough and share > 0))
            open_places[TRAIN][label] -= open_places[split][label]
    order = sorted(members)
    random.Random(seed).shuffle(order)
    chosen: dict[str, str] = {}
    for source in sorted(order, key=lambda one: -members[one].total()):
        counts = members[source]
        chosen[source] = max(
            open_places,
            key=lambda split: sum(
                number * open_places[split][label] / of_class[label] for label, number in counts.items()
            ),
        )
        for label, number in counts.items():
            open_places[chosen[source]][label] -= number
    return [chosen[source] for source in sources]


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise ValueError unless the shares are in [0, 1) and leave something for training."""
    for split, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f'{split}_share={share}: a share of the samples in [0, 1) is accepted')
    if sum(shares.values()) >= 1:
        listed = ', '.join(f'{split}_share={share}' for split, share in shares.items())
        raise ValueError(f'{listed}: shares below 1 in total are accepted, which leave samples for training')


def sources_by(pattern: str, names: Sequence[str]) -> list[str]:
    """Return the source of each name: the first group of a regular expression that is found in it, or all it matches.

    Raises:
        ValueError: For a pattern that is none, or that a name does not match, naming the first.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f'group_by={pattern!r}: a regular expression is accepted ({error})') from None
    found = [expression.search(name) for name in names]
    unmatched = [name for name, match in zip(names, found, strict=True) if match is None]
    if unmatched:
        raise ValueError(
            f'group_by={pattern!r}: a pattern that every path matches is accepted, and {len(unmatched)} of '
            f'{len(names)} do not match; the first is {unmatched[0]}'
        )
    return [next((group for group in match.groups() if group is not None), match[0]) for match in found if match]


def sources_in_two_splits(splits: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Return 'source (train and val)' for each source whose samples are in several splits."""
    where: dict[str, set[str]] = defaultdict(set)
    for split, source in zip(splits, sources, strict=True):
        where[source].add(split)
    return [f'{source} ({" and ".join(sorted(names))})' for source, names in where.items() if len(names) > 1]


def content_in_two_splits(root: Path, files: Iterable[tuple[str, str, int]]) -> list[str]:
    """Return 'path = other path' for each content that several files in several splits have.

    Only files of equal size in different splits are read.

    Args:
        root: The folder that the paths are in.
        files: Split, path and size in bytes of each file.
    """
    by_size = defaultdict(list)
    for split, path, size in files:
        by_size[size].append((split, path))
    by_content = defaultdict(list)
    for same in by_size.values():
        if len({split for split, _ in same}) > 1:
            for split, path in same:
                by_content[sha256(root / path)].append((split, path))
    return [
        ' = '.join(path for _, path in same[:2])
        for same in by_content.values()
        if len({split for split, _ in same}) > 1 and len({path for _, path in same}) > 1
    ]
