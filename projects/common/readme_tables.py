"""Tables in Markdown files, between the marks `<!-- name:start -->` and `<!-- name:end -->`."""

from pathlib import Path


def read_table(file: Path, name: str) -> str:
    """Return the text between the marks.

    Raises:
        ValueError: If the file does not have exactly one pair of marks, in order.
    """
    return _parts(file, name)[1]


def write_table(file: Path, name: str, text: str) -> bool:
    """Write `text` between the marks, on lines of its own.

    Returns:
        Whether the file changed.

    Raises:
        ValueError: If the file does not have exactly one pair of marks, in order.
    """
    before, found, after = _parts(file, name)
    text = text.rstrip('\n') + '\n'
    if found != text:
        file.write_text(before + text + after)
    return found != text


def _parts(file: Path, name: str) -> tuple[str, str, str]:
    """Return the text up to the first mark with its line end, the text between the marks, and the rest."""
    start, end = (f'<!-- {name}:{side} -->' for side in ('start', 'end'))
    text = file.read_text()
    first, last = text.find(start), text.find(end)
    if text.count(start) != 1 or text.count(end) != 1 or last < first:
        raise ValueError(f'{file} must have one {start} followed by one {end}')
    begin = first + len(start) + 1
    return text[:begin], text[begin:last], text[last:]
