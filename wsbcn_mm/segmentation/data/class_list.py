"""`classes.txt` of a folder data set: a name per line, and how the masks show the class.

    road                  the first class is the value 0, the next one 1, ...
    road 128              a value
    road 128 64 128       a colour, also as `road #804080`
    road 7 #804080        a value, and the colour in which predictions are drawn
    ignore 255            pixels of this value or colour do not count

A line that begins with # is a comment. Commas, colons and tabs separate like blanks, so CamVid's `class_dict.csv` can
be used as it is but for its header. A name that ends in a number stands in quotes: "digit 4" 4.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...engine.files import require
from .label_map import IGNORED, UNKNOWN

CLASS_FILE = 'classes.txt'
IGNORE = 'ignore'
"""Name of the lines that are no class."""

LINE = 'a name, a name and a value (`road 7`), or a name and a colour (`road 128 64 128`, `road #804080`)'
HIGHEST_VALUE = 65535

Colour = tuple[int, int, int]


class ClassList(NamedTuple):
    """The classes of a folder data set.

    Attributes:
        names: Class names in label order.
        palette: Colour of each class, RGB; those that the file does not give are VOC's.
        label_map: `{raw value: class}`, with `IGNORED` for what does not count. Colours are packed to 0xRRGGBB.
        by_colour: Whether raw values are colours.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    label_map: dict[int, int]
    by_colour: bool

    def raw_name(self, raw: int) -> str:
        """Return a raw value as people write it: '7', or '#804080'."""
        return f'#{raw:06x}' if self.by_colour else str(raw)

    def class_name(self, raw: int) -> str | None:
        """Return the class of a raw value, 'ignore', or None for a value outside the list."""
        index = self.label_map.get(raw)
        return None if index is None else IGNORE if index == IGNORED else self.names[index]


def load_class_list(file: str | Path) -> ClassList:
    """Read a `classes.txt`.

    Raises:
        FileNotFoundError: If it does not exist, naming the nearest thing that does.
        ValueError: For a malformed line, lines of different kinds, a class or a raw value that occurs twice, or no
            classes; with file and line.
    """
    file = Path(file)
    require(file)
    try:
        lines = file.read_bytes().decode('utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{file}: not UTF-8: {error.reason}') from None
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith('#'):
            try:
                entries.append((number, *_parse(line)))
            except ValueError as error:
                raise ValueError(f'{file}:{number}: {error}') from None
    return _class_list(file, entries)


def index_class_list(names: Sequence[str], palette: Sequence[Colour] | None = None) -> ClassList:
    """Return the list in which class k is the value k and 255 is ignored."""
    colours = tuple(palette or (voc_colour(index) for index in range(len(names))))
    return ClassList(tuple(names), colours, {index: index for index in range(len(names))} | {IGNORED: IGNORED}, False)


def format_class_list(classes: ClassList) -> str:
    """Return the text of the `classes.txt` that `load_class_list` reads as this list."""
    lines = []
    for raw, index in sorted(classes.label_map.items(), key=lambda item: (item[1], item[0])):
        name = IGNORE if index == IGNORED else classes.names[index]
        quoted = f'"{name}"' if _parse_loosely(name) != (name, []) else name
        words = [quoted, classes.raw_name(raw)]
        if not classes.by_colour and index != IGNORED:
            words.append('#{:02x}{:02x}{:02x}'.format(*classes.palette[index]))
        lines.append(' '.join(words) + '\n')
    return ''.join(lines)


def pack(colour: Sequence[int]) -> int:
    """Return (R, G, B) as the number 0xRRGGBB."""
    red, green, blue = (int(one) for one in colour)
    return red << 16 | green << 8 | blue


def unpack(colour: int) -> Colour:
    """Return 0xRRGGBB as (R, G, B)."""
    return colour >> 16, colour >> 8 & 255, colour & 255


def voc_colour(index: int) -> Colour:
    """Return colour `index` of Pascal VOC's map: bits of the index, three at a time, from the highest bits down."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return channels[0], channels[1], channels[2]


def _parse(line: str) -> tuple[str, int | None, Colour | None]:
    """Return name, value and colour of a line, of which the last two may be None."""
    name, words = _parse_loosely(line)
    if not name:
        raise ValueError(f'{line.strip()!r}: the name is missing; {LINE} is accepted')
    colour = None
    if words and words[-1].startswith('#'):
        colour = unpack(int(words.pop()[1:], 16))
    elif len(words) in (3, 4):
        red, green, blue = (_number(word, 255, name) for word in words[-3:])
        colour = (red, green, blue)
        del words[-3:]
    if len(words) > 1:
        raise ValueError(f'{line.strip()!r}: {LINE} is accepted; a name that ends in a number stands in quotes')
    return name, _number(words[0], HIGHEST_VALUE, name) if words else None, colour


def _parse_loosely(line: str) -> tuple[str, list[str]]:
    """Return the name of a line and the numbers behind it."""
    quoted = re.fullmatch(r'\s*"([^"]*)"[\s,;:]*(.*)', line)
    name, rest = quoted.groups() if quoted else ('', line)
    number = r'#[0-9a-fA-F]{6}|-?[0-9]+(?:\.[0-9]+)?'
    behind = re.search(rf'(?:^|(?<=[\s,;:]))(?:{number})(?:[\s,;:]+(?:{number}))*[\s,;:]*$', rest)
    words = re.findall(number, behind[0]) if behind else []
    before = rest[: behind.start()] if behind else rest
    if quoted and before.strip():
        raise ValueError(f'{line.strip()!r}: {LINE} is accepted')
    return name.strip() or before.strip(' \t,;:'), words


def _number(word: str, highest: int, name: str) -> int:
    if not word.isdigit() or int(word) > highest:
        raise ValueError(f'{name}={word}: a whole number from 0 to {highest} is accepted')
    return int(word)


def _class_list(file: Path, entries: Sequence[tuple[int, str, int | None, Colour | None]]) -> ClassList:
    classes = [entry for entry in entries if entry[1] != IGNORE]
    if not classes:
        raise ValueError(f'{file}: no classes; each line is {LINE}')
    by_colour, numbered = _kind(file, classes)
    names: dict[str, int] = {}
    label_map: dict[int, int] = {}
    lines: dict[int, int] = {}
    for line, name, value, colour in entries:
        if name in names:
            hint = '; a name that ends in a number stands in quotes' if not by_colour and numbered else ''
            raise ValueError(f'{file}:{line}: class {name!r} is in line {names[name]} already{hint}')
        index = IGNORED if name == IGNORE else len(names)
        if name != IGNORE:
            names[name] = line
        raw = pack(colour) if by_colour and colour else value if numbered or name == IGNORE else index
        if raw is None or (by_colour and colour is None):
            like = '255 255 255' if by_colour else '255'
            raise ValueError(f'{file}:{line}: {name!r} has no {"colour" if by_colour else "value"}: {name} {like}')
        if raw in label_map:
            shown = f'colour #{raw:06x}' if by_colour else f'value {raw}'
            raise ValueError(f'{file}:{line}: {shown} is in line {lines[raw]} already')
        label_map[raw], lines[raw] = index, line
    if len(names) >= UNKNOWN:
        raise ValueError(f'{file}: {len(names)} classes; up to {UNKNOWN - 1} are accepted')
    palette = tuple(colour or voc_colour(index) for index, (_, _, _, colour) in enumerate(classes))
    return ClassList(tuple(names), palette, label_map, by_colour)


def _kind(file: Path, classes: Sequence[tuple[int, str, int | None, Colour | None]]) -> tuple[bool, bool]:
    """Return whether masks show the classes by colour, and whether the lines have values."""
    kinds: Mapping[str, int] = {
        'a value' if value is not None else 'a colour' if colour else 'neither value nor colour': line
        for line, _, value, colour in reversed(classes)
    }
    if len(kinds) > 1:
        listed = ', '.join(f'line {line} has {kind}' for kind, line in sorted(kinds.items(), key=lambda one: one[1]))
        raise ValueError(f'{file}: {listed}; all classes need the same: {LINE}')
    return 'a colour' in kinds, 'a value' in kinds
