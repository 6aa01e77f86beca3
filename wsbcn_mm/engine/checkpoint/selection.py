"""Choose the checkpoint that a run resumes from: the latest intact one."""

import re
from pathlib import Path

from .damage import damage_in


def checkpoints_to_resume(work_dir: str | Path) -> list[Path]:
    """Return the local files that a run in this folder can resume from, in order of preference.

    The file that `last_checkpoint` names comes first, then earlier ones, latest first. Later ones come last: the folder
    may contain checkpoints of another, longer run.
    """
    named = named_last(work_dir)
    if not named or '://' in named:
        return [] if named else checkpoints_of_a_run(work_dir)
    last = Path(named)
    folders = dict.fromkeys([last.parent, Path(work_dir)])
    others = [path for folder in folders for path in checkpoints_of_a_run(folder) if path != last]
    others.sort(key=lambda path: step_of(path) > step_of(last))
    return [last, *others] if last.is_file() else others


def first_whole(paths: list[Path]) -> tuple[Path | None, dict[Path, str]]:
    """Return the first intact file, or None, and the damage of the files before it."""
    damaged: dict[Path, str] = {}
    for path in paths:
        damage = damage_in(path)
        if damage is None:
            return path, damaged
        damaged[path] = damage
    return None, damaged


def checkpoints_of_a_run(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a run in `folder`, the latest first. Order by name, since copying changes dates."""
    return sorted((path for path in Path(folder).glob('*.pth') if step_of(path) and path.is_file()), key=step_of)[::-1]


def step_of(path: Path) -> int:
    """Return the iteration or epoch in the name of a run's checkpoint; 0 for other names."""
    found = re.fullmatch(r'(?:iter|epoch)_(\d+)\.pth', path.name)
    return int(found[1]) if found else 0


def named_last(work_dir: str | Path) -> str:
    """Return the path in `last_checkpoint` of a run; empty if there is none."""
    pointer = Path(work_dir) / 'last_checkpoint'
    return pointer.read_text().strip() if pointer.is_file() else ''
