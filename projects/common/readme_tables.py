"""Tables that studies write into Markdown files, between `<!-- name:start -->` and `<!-- name:end -->`."""

from pathlib import Path


def read_table(file: Path, name: str) -> str:
    """What stands between the marks.

    Raises:
        ValueError: If the file has not exactly one pair of marks, in order.
    """
    return _parts(file, name)[1]


def write_table(file: Path, name: str, text: str) -> bool:
    """Put `text` between the marks, on lines of its own.

    Returns:
        Whether the file changed.

    Raises:
        ValueError: If the file has not exactly one pair of marks, in order.
    """
    before, there, after = _parts(file, name)
    text = text.rstrip('\n') + '\n'
    if there != text:
        file.write_text(before + text + after)
    return there != text


def _parts(file: Path, name: str) -> tuple[str, str, str]:
    """Text up to the first line between the marks, what is between them, and from the second mark on."""
    start, end = (f'<!-- {name}:{side} -->' for side in ('start', 'end'))
    text = file.read_text()
    first, last = text.find(start), text.find(end)
    if text.count(start) != 1 or text.count(end) != 1 or last < first:
        raise ValueError(f'{file} must hold one {start} and after it one {end}')
    begin = first + len(start) + 1
    return text[:begin], text[begin:last], text[last:]
