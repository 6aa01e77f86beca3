"""Which classes a mirror exchanges, from their names: "turn_left" and "turn_right", "TurnLeft" and "TurnRight".

Blanks, punctuation, digits and the capitals of CamelCase end a word. A name that contains left or right in another
way, such as "turnleft", counts as a direction too, unless the word is known to mean none, such as "upright".
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

OTHER_SIDE = {'left': 'right', 'right': 'left'}
NO_DIRECTION = re.compile(
    '(?:(?:a|al|b|birth|copy|down|f|forth|out|play|up|w)right(?:s|ed|en|ens|ened|ening|er|est|ful|ly|ness)?'
    '|right(?:eous|eously|ful|fully|ly)|clefts?|leftovers?)'
)
"""Words that contain left or right and mean neither."""

TURNS = {
    'counterclockwise': ('clockwise',),
    'anticlockwise': ('clockwise',),
    'clockwise': ('counterclockwise', 'anticlockwise'),
}
"""What a mirror makes of a turn; the longer words first, because they contain the last one."""


def mirror_labels(classes: Sequence[str]) -> list[int | None]:
    """Return the label of the mirrored sample for every class, from left, right and clockwise in the class names.

    A class without direction is its own mirror image, and so is "pulling it right out", where the word means none. A
    class with a direction maps to the class whose name has it exchanged; None if no such class exists.

    >>> mirror_labels(['turn_left', 'turn_right', 'Opening', 'moveLeft2'])
    [1, 0, 2, None]
    """
    exact = {name: label for label, name in enumerate(classes)}
    spelled: dict[str, list[int]] = defaultdict(list)
    for name, label in exact.items():
        spelled[_key(name)].append(label)
    mirrored = [_mirrored(label, name, exact, spelled) for label, name in enumerate(classes)]
    return [other if other is not None and mirrored[other] == label else None for label, other in enumerate(mirrored)]


def directed(classes: Sequence[str]) -> list[str]:
    """Return the class names that a mirror changes, whether or not their mirror image is a class."""
    return [
        name for name, (label, other) in zip(classes, enumerate(mirror_labels(classes)), strict=True) if label != other
    ]


def unpaired(classes: Sequence[str]) -> list[str]:
    """Return the class names with a direction that is not understood or whose mirror image is not a class."""
    return [classes[label] for label, other in enumerate(mirror_labels(classes)) if other is None]


def _mirrored(label: int, name: str, exact: dict[str, int], spelled: dict[str, list[int]]) -> int | None:
    # "upright" means no direction, unless "upleft" is a class as well.
    for candidate in (_exchanged(name), _exchanged(name, NO_DIRECTION)):
        if candidate != name:
            others = [exact[candidate]] if candidate in exact else spelled.get(_key(candidate), [])
            if len(others) == 1:
                return others[0]
    for turn, opposite in TURNS.items():
        if turn in _key(name):
            found = [one for other in opposite for one in spelled.get(_key(name).replace(turn, other), [])]
            return found[0] if len(found) == 1 else None
    return label if _exchanged(name, NO_DIRECTION) == name else None


def _exchanged(name: str, no_direction: re.Pattern[str] | None = None) -> str:
    """Return the name with left and right exchanged, but for the words of `no_direction`."""
    kept = {
        at
        for (start, word), (_, after) in _words(name)
        if (no_direction and no_direction.fullmatch(word.lower())) or (word.lower(), after.lower()) == ('right', 'out')
        for at in range(start, start + len(word))
    }
    return re.sub(
        'left|right',
        lambda found: found[0] if found.start() in kept else _like(found[0], OTHER_SIDE[found[0].lower()]),
        name,
        flags=re.IGNORECASE,
    )


def _words(name: str) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
    """Yield each word of the name with the one after it, both with their places; words end as in CamelCase."""
    words = []
    for run in re.finditer(r'[^\W\d_]+', name):
        start = run.start()
        for word in re.split('(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', run[0]):
            words.append((start, word))
            start += len(word)
    yield from zip(words, [*words, (len(name), '')][1:], strict=True)


def _like(old: str, new: str) -> str:
    """Return `new` with the capitals of `old`."""
    if old.isupper():
        return new.upper()
    return new.capitalize() if old[0].isupper() else new


def _key(name: str) -> str:
    """Return the letters and digits of the name, in which spellings of one name agree."""
    return re.sub(r'[\W_]+', '', name).casefold()
