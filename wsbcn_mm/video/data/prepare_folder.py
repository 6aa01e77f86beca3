"""From a folder of videos to a split, a list of classes and a manifest that recipes read."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from ...engine.data.file_kinds import IMAGES, VIDEOS, counted, suffix_of
from ...engine.data.preparation import print_report
from ...engine.data.splits import (
    check_shares,
    content_in_two_splits,
    sources_by,
    sources_in_two_splits,
    stratified_split,
)
from ...engine.files import some, update_atomically
from .annotations import load_classes
from .folder import CLASS_FILE, SPLIT_FILE, FolderClip, Listing, format_split, list_folder, read_split
from .inventory import Clip, take_inventory
from .manifest import MANIFEST, NO_FILE, OK, ManifestRow
from .probe import probe_many

VAL_SHARE = 0.2


def prepare_video_folder(
    root: Path,
    console: Console,
    *,
    val_share: float | None = None,
    test_share: float | None = None,
    seed: int | None = None,
    group_by: str | None = None,
    processes: int = 1,
    deadline: float = 20.0,
) -> list[str]:
    """Check a folder of videos, split it if it is not split yet, and write split.csv, classes.txt and manifest.csv.

    Every video is decoded to its end, once. Files of a suffix that says nothing are tried; those that FFmpeg does not
    open are counted as skipped.

    Args:
        root: The folder; `wsbcn_mm.video.data.folder` has its layouts.
        console: Where progress and the report go.
        val_share: Share of the videos of each class for validation, 0.2 by default. Only for a folder without split.
        test_share: Share for the test, none by default. Likewise.
        seed: Of the split, 0 by default. Likewise.
        group_by: Regular expression whose first group, or match, in the name of a video is its source, in place of a
            column `source`. The name is the path below the class folder, or as the CSV has it. Videos of one source
            stay in one split.
        processes: Number of videos that are decoded at the same time.
        deadline: Seconds for each.

    Returns:
        What is wrong, one line each; an empty list for a data set that can be trained on.

    Raises:
        ValueError: For a folder without videos, a malformed CSV, a class that is not in `classes.txt`, or arguments
            that are out of range or ask for another split than the folder has.
    """
    listing = _tried(root, list_folder(root), processes, deadline)
    if not listing.clips:
        skipped = counted(listing.skipped) or 'no other files'
        raise ValueError('. '.join([f'{root} has no videos in class folders, but {skipped}', *listing.problems]))
    listing = _named(root, listing)
    classes = _classes(root, listing)
    notes, problems = list(listing.notes), list(listing.problems)
    sources = _sources(listing.clips, group_by)
    asked = dict(val_share=val_share, test_share=test_share, seed=seed)
    clips, said = _split(root, listing, sources, {name: one for name, one in asked.items() if one is not None})
    notes += said
    # First the list, so that an interrupted run keeps its split.
    update_atomically(root / SPLIT_FILE, format_split(clips).encode())
    labels = {name: label for label, name in enumerate(classes)}
    listed = [Clip(clip.path, labels[clip.class_name], clip.class_name, clip.split) for clip in clips]
    rows = take_inventory(root, listed, console, processes=processes, deadline=deadline)
    problems += _problems(rows, clips, sources, group_by, classes)
    if listing.skipped:
        hint = '; videos as folders of frames need a video file each' * bool(set(listing.skipped) & set(IMAGES))
        notes.append(f'skipped, no videos: {counted(listing.skipped)}{hint}')
    equal = content_in_two_splits(root, ((row.split, row.path, row.bytes) for row in rows if row.status == OK))
    if equal:
        notes.append(f'{len(equal)} videos have the same content in two splits: {some(equal)}')
    stills = [row.path for row in rows if row.status == OK and row.frames == 1]
    if stills:
        notes.append(f'{len(stills)} videos have one frame only: {some(stills)}')
    lines = [f'{len(classes)} classes, in the order of {CLASS_FILE}', *_describe(rows, classes)]
    print_report(console, [*lines, *(f'note: {note}' for note in notes)], problems, root / MANIFEST)
    return problems


def _tried(root: Path, listing: Listing, processes: int, deadline: float) -> Listing:
    """Return the listing without files of an unknown suffix that FFmpeg does not open; files of a CSV all stay."""
    unknown = [clip for clip in listing.clips if suffix_of(Path(clip.path)) not in VIDEOS]
    if listing.lists or not unknown:
        return listing
    paths = [str(root / clip.path) for clip in unknown]
    facts = dict(probe_many(paths, processes=processes, deadline=deadline))
    none = {clip.path for clip in unknown if facts[str(root / clip.path)].status != OK}
    skipped = listing.skipped + Counter(suffix_of(Path(path)) for path in none)
    return listing._replace(clips=[clip for clip in listing.clips if clip.path not in none], skipped=skipped)


def _named(root: Path, listing: Listing) -> Listing:
    """Return the listing with class names in place of numbers, where a CSV has numbers and `classes.txt` has names."""
    file = root / CLASS_FILE
    labels = {clip.class_name for clip in listing.clips}
    if not listing.lists or not file.is_file() or not all(label.isdigit() for label in labels):
        return listing
    classes = load_classes(str(file))
    if labels & set(classes):
        return listing
    numbers = {int(label) for label in labels}
    if max(numbers) >= len(classes):
        first = next(clip for clip in listing.clips if int(clip.class_name) >= len(classes))
        hint = '; they must count from 0, subtract 1 from each' if min(numbers) == 1 else ''
        raise ValueError(
            f'{first.place}: label={first.class_name}: 0 to {len(classes) - 1} is accepted, the places in {file}{hint}'
        )
    return listing._replace(
        clips=[clip._replace(class_name=classes[int(clip.class_name)]) for clip in listing.clips],
        notes=[*listing.notes, f'labels are places in {CLASS_FILE}, from 0'],
    )


def _classes(root: Path, listing: Listing) -> list[str]:
    """Return the class names in label order, from `classes.txt`, which is written if it does not exist."""
    file = root / CLASS_FILE
    names = {clip.class_name for clip in listing.clips}
    folders: dict[str, set[str]] = defaultdict(set)
    for clip in listing.clips if not listing.lists else ():
        folders[clip.class_name].add(Path(clip.place).name)
    for name, several in folders.items():
        if len(several) > 1:
            raise ValueError(f'{len(several)} class folders of {root} are written {name!r} in different characters')
    if not file.is_file():
        by_number = all(name.isdigit() for name in names)
        ordered = sorted(names, key=int) if by_number else sorted(names)
        update_atomically(file, ''.join(f'{name}\n' for name in ordered).encode())
    classes = load_classes(str(file))
    unknown = sorted(names - set(classes))
    if unknown:
        place = next(clip.place for clip in listing.clips if clip.class_name == unknown[0])
        raise ValueError(
            f'{place}: class {unknown[0]!r} is not in {file}, which has {some(map(repr, classes))}. Remove the file to '
            'have a new one written, or add the class'
        )
    return classes


def _sources(clips: Sequence[FolderClip], group_by: str | None) -> list[str]:
    """Return the source of each clip; its path where nothing says."""
    if group_by is None:
        return [f'source {clip.source}' if clip.source else clip.path for clip in clips]
    return sources_by(group_by, [clip.name for clip in clips])


def _split(
    root: Path, listing: Listing, sources: Sequence[str], asked: Mapping[str, float]
) -> tuple[list[FolderClip], list[str]]:
    """Return the clips with their splits, and what was done."""
    file, clips = root / SPLIT_FILE, listing.clips
    before = read_split(file) if file.is_file() and not all(clip.split for clip in clips) else {}
    if asked and (before or clips[0].split):
        name, value = next(iter(asked.items()))
        where = f'{file} has one: remove it for a new split' if before else 'its folders or lists have one'
        raise ValueError(f'{name}={value}: accepted for a folder without split, and {where}')
    if clips[0].split:
        return list(clips), []
    shares = dict(val=asked.get('val_share', VAL_SHARE), test=asked.get('test_share', 0.0))
    check_shares(shares)
    seed = int(asked.get('seed', 0))
    kept = {clip.path: before[clip.path].split for clip in clips if clip.path in before}
    if not listing.lists:
        _check_labels(clips, before, file)
    # What has a split keeps it, and so does what is from the same source.
    of_source = {source: kept[clip.path] for clip, source in zip(clips, sources, strict=True) if clip.path in kept}
    new = [place for place, source in enumerate(sources) if source not in of_source]
    names, own = [clips[place].class_name for place in new], [sources[place] for place in new]
    of_source |= dict(zip(own, stratified_split(names, own, shares, seed), strict=True))
    divided = [
        clip._replace(split=kept.get(clip.path, of_source[source])) for clip, source in zip(clips, sources, strict=True)
    ]
    if not before:
        return divided, [f'split by class with seed {seed}, kept in {SPLIT_FILE}']
    added, gone = len(clips) - len(kept), sorted(set(before) - set(kept))
    notes = [f'{added} new videos were added to {SPLIT_FILE}'] * bool(added)
    return divided, [*notes, *([f'{len(gone)} videos of {SPLIT_FILE} are gone: {some(gone)}'] if gone else [])]


def _check_labels(clips: Sequence[FolderClip], before: Mapping[str, FolderClip], file: Path) -> None:
    """Raise ValueError for a list that contradicts the class folders."""
    for clip in clips:
        listed = before.get(clip.path, clip)
        if listed.class_name != clip.class_name:
            raise ValueError(
                f'{listed.place}: label={listed.class_name!r}: {clip.class_name!r}, the class folder, is accepted. If '
                f'{file.name} is your own list, rename it, for example to clips.csv'
            )


def _problems(
    rows: Sequence[ManifestRow],
    clips: Sequence[FolderClip],
    sources: Sequence[str],
    group_by: str | None,
    classes: Sequence[str],
) -> list[str]:
    problems = [f'{row.path} cannot be used: {row.status}' for row in rows if row.status not in (OK, NO_FILE)]
    usable = Counter((row.split, row.class_name) for row in rows if row.status == OK)
    listed = Counter((row.split, row.class_name) for row in rows)
    for split in ('train', 'val'):
        if not any(own == split for own, _ in listed):
            problems.append(f'no videos are for {split}: make a folder or lines of {split}, or let the folder be split')
        elif not any(own == split for own, _ in usable):
            problems.append(f'{split}: none of its videos can be used')
    known = {name for _, name in listed}
    untrained = [name for name in classes if name in known and not usable['train', name]]
    if untrained and any(split == 'train' for split, _ in usable):
        problems.append(f'{len(untrained)} classes have no video to train on: {some(map(repr, untrained))}')
    shared = sources_in_two_splits([clip.split for clip in clips], sources)
    if shared:
        by = f'group_by={group_by!r}' if group_by else 'the column source'
        problems.append(f'{len(shared)} sources of {by} are in two splits: {some(shared)}')
    return problems


def _describe(rows: Sequence[ManifestRow], classes: Sequence[str]) -> list[str]:
    """Return counts, frames, rates and sizes of each split, and the videos of each class, in words."""
    lines = []
    splits = dict.fromkeys(row.split for row in sorted(rows, key=lambda row: ('train', 'val', 'test').index(row.split)))
    for split in splits:
        own = [row for row in rows if row.split == split]
        usable = [row for row in own if row.status == OK]
        size = sum(row.bytes for row in own) / 1e9
        lines.append(f'{split}: {len(own)} videos, {len(usable)} can be used, {size:.2f} GB')
        if usable:
            frames = [row.frames for row in usable]
            rates = sorted({row.fps for row in usable if row.fps is not None})
            sizes = sorted({(row.width, row.height) for row in usable}, key=lambda size: size[0] * size[1])
            shown = [f'{width} x {height}' for width, height in (sizes[0], sizes[-1])]
            lines.append(
                f'  {_span(min(frames), max(frames))} frames (median {statistics.median(frames):g}), '
                f'{_span(rates[0], rates[-1]) if rates else "unknown"} fps, '
                f'{shown[0] if len(sizes) == 1 else f"{len(sizes)} sizes from {shown[0]} to {shown[1]}"} pixels'
            )
    counts = Counter((row.class_name, row.split) for row in rows)
    of_class = [(name, [counts[name, split] for split in splits]) for name in classes]
    shown_classes = sorted(of_class, key=lambda one: sum(one[1]))
    listed = [f'{name} {" + ".join(map(str, numbers))}' for name, numbers in shown_classes]
    few = listed if len(listed) <= 12 else [*listed[:6], '...', *listed[-6:]]
    return [*lines, f'videos of each class, {" + ".join(splits)}: {", ".join(few)}']


def _span(low: float, high: float) -> str:
    return f'{low:g}' if low == high else f'{low:g} to {high:g}'
