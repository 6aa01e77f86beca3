"""From a folder of images and masks to a checked data set: what is in it, what does not fit, a split if there is none.

Every image and every mask is read once, to its end. `manifest.json` keeps what was found; a second run reads only what
has changed since.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from ...engine.data.file_kinds import IMAGES, counted, files_below, suffix_of
from ...engine.data.preparation import print_report, progress_bar
from ...engine.data.splits import (
    check_shares,
    content_in_two_splits,
    sources_by,
    sources_in_two_splits,
    stratified_split,
)
from ...engine.files import nearest, some, update_atomically
from .class_list import CLASS_FILE, IGNORE, ClassList, load_class_list
from .folder import Found, Place, check_headers, find_splits, key_of, pair_files, unused_files
from .image_files import PNG_SIGNATURE, read_image
from .inventory import MANIFEST, read_manifest
from .masks import MASK_SUFFIXES, count_raw, outside_list, read_mask
from .pairs import Pair

VAL_SHARE = 0.2
LOOKED_AT = 20
"""Masks whose values an error names when there is no list of classes."""


def prepare_segmentation_folder(
    root: Path,
    console: Console,
    *,
    val_share: float | None = None,
    test_share: float | None = None,
    seed: int | None = None,
    group_by: str | None = None,
    processes: int = 1,
) -> list[str]:
    """Check a folder of images and masks, split it if it is not split yet, and write `root/manifest.json`.

    Args:
        root: The folder; `wsbcn_mm.segmentation.data.folder` has its layouts.
        console: Where progress and the report go.
        val_share: Share of the images for validation, 0.2 by default. Only for a folder without split.
        test_share: Share of the images for the test, none by default. Likewise.
        seed: Of the split, 0 by default. Likewise.
        group_by: Regular expression whose first group, or match, in the name of an image is the source of the image.
            The name is the path below the folder of the images, without suffix. Images of one source stay in one split.
        processes: Number of files that are read at the same time.

    Returns:
        What is wrong, one line each; an empty list for a data set that can be trained on.

    Raises:
        FileNotFoundError: If images or `classes.txt` do not exist, naming the nearest thing that does. Without
            `classes.txt` the message has the values of the masks.
        ValueError: For a malformed list of classes, contradictory splits, or arguments that are out of range or ask for
            another split than the folder has.
    """
    places = find_splits(root)
    classes = _classes(root, places)
    notes: list[str] = []
    asked = dict(val_share=val_share, test_share=test_share, seed=seed)
    if places:
        given = {name: value for name, value in asked.items() if value is not None}
        if given:
            name, value = next(iter(given.items()))
            raise ValueError(
                f'{name}={value}: accepted for a folder without split, and {root} has {", ".join(places)} '
                f'({some(str(place.names or place.images) for place in places.values())}). Remove the lists for a new '
                'split'
            )
    else:
        shares = dict(val=VAL_SHARE if val_share is None else val_share, test=test_share or 0.0)
        notes += _write_split(root, shares, seed or 0, group_by)
        places = find_splits(root)
    found = {split: pair_files(place, root, need_masks=split != 'test') for split, place in places.items()}
    problems = list(dict.fromkeys(line for one in found.values() for line in one.problems))
    problems += [
        f'{root} has no split {split}: make it beside {", ".join(places)}, or remove the split to have one made'
        for split in ('train', 'val')
        if split not in places
    ]
    # A list may leave images out on purpose; sub-folders do not.
    by_list = any(place.names for place in places.values())
    (notes if by_list else problems).extend(unused_files(root, places, found))
    for one in found.values():
        problems += check_headers(one.pairs, root, damage=False)  # reading finds it
        notes += one.notes
    # Splits by lists share their folders.
    skipped = sum({places[split][:2]: one.skipped for split, one in found.items()}.values(), Counter[str]())
    if skipped:
        notes.append(f'skipped, neither images nor masks: {counted(skipped)}')
    files = _read_all(root, found, classes, processes, console)
    for entries in files.values():
        problems += [line for entry in entries for line in _problems_of(entry, classes)]
    problems += _in_two_splits(files)
    if group_by:
        problems += _leaks(places, found, group_by)
    equal = content_in_two_splits(
        root, ((split, entry['image'], entry['stamps'][0][0]) for split, entries in files.items() for entry in entries)
    )
    if equal:
        notes.append(f'{len(equal)} images have the same content in two splits: {some(equal)}')
    lines = [f'{len(classes.names)} classes, in the order of {CLASS_FILE}']
    for split, entries in files.items():
        lines += _describe(split, entries, classes)
    _write_manifest(root, classes, files, problems)
    print_report(console, [*lines, *(f'note: {note}' for note in notes)], problems, root / MANIFEST)
    return problems


def _classes(root: Path, places: Mapping[str, Place]) -> ClassList:
    file = root / CLASS_FILE
    if file.is_file():
        return load_class_list(file)
    folders = [place.masks for place in places.values() if place.masks] or [root / 'masks']
    if not any(folder.is_dir() for folder in folders):
        raise FileNotFoundError(f'{folders[0]} does not exist; {nearest(folders[0])}')
    raise FileNotFoundError(
        f'{file} does not exist; {nearest(file)}. It has a line for each class, "name", "name value" or '
        f'"name #rrggbb", and "{IGNORE} value" for what does not count. {_values_of_masks(folders)}'
    )


def _values_of_masks(folders: Sequence[Path]) -> str:
    """Return which values, or colours, some masks have."""
    files = [file for folder in folders for file in files_below(folder) if file.suffix.lower() in MASK_SUFFIXES]
    step = -(-len(files) // LOOKED_AT) or 1
    for by_colour in (False, True):
        try:
            pixels = sum((Counter(count_raw(read_mask(file, by_colour))) for file in files[::step]), Counter[int]())
        except (OSError, ValueError):
            continue
        shown = [f'#{raw:06x}' if by_colour else str(raw) for raw in sorted(raw for raw, _ in pixels.most_common(30))]
        kind = 'colours' if by_colour else 'values'
        return f'{len(files[::step])} masks have the {kind} {", ".join(shown)}' + ', ...' * (len(pixels) > 30)
    return f'{len(files)} masks were found'


def _write_split(root: Path, shares: Mapping[str, float], seed: int, group_by: str | None) -> list[str]:
    """Write `train.txt` and `val.txt`, and say so."""
    check_shares(shares)
    whole = Place(root / 'images', root / 'masks', shared=True)
    names = sorted({key_of(file, whole) for file in files_below(whole.images) if suffix_of(file) in IMAGES})
    if not names:
        raise FileNotFoundError(pair_files(whole, root).problems[0])
    sources = sources_by(group_by, names) if group_by else names
    splits = stratified_split([''] * len(names), sources, shares, seed)
    counts = Counter(splits)
    for split in ('train', *shares):
        chosen = [name for name, own in zip(names, splits, strict=True) if own == split]
        if chosen:
            update_atomically(root / f'{split}.txt', ''.join(f'{name}\n' for name in chosen).encode())
    files = ', '.join(f'{split}.txt ({counts[split]})' for split in counts)
    return [f'split at random with seed {seed}' + f' and group_by={group_by!r}' * bool(group_by) + f': {files}']


def _read_all(
    root: Path, found: Mapping[str, Found], classes: ClassList, processes: int, console: Console
) -> dict[str, list[dict]]:
    """Return what is known about each pair of each split; unchanged files are not read again."""
    before = read_manifest(root)
    known = {}
    if before.get('by_colour') == classes.by_colour:
        known = {entry['image']: entry for split in before.get('splits', {}).values() for entry in split['files']}
    files = {}
    with progress_bar(console) as progress, ThreadPoolExecutor(processes) as pool:
        for split, one in found.items():
            entries = pool.map(lambda pair: _entry(root, pair, known, classes.by_colour), one.pairs)
            files[split] = list(progress.track(entries, total=len(one.pairs), description=f'{split}: reading'))
    return files


def _entry(root: Path, pair: Pair, known: Mapping[str, dict], by_colour: bool) -> dict:
    """Return names, bytes, times of change, size (width, height), the pixels of each raw value, and what is damaged."""
    stamps = [[path.stat().st_size, path.stat().st_mtime_ns] if path else None for path in pair]
    image = pair.image.relative_to(root).as_posix()
    mask = pair.label and pair.label.relative_to(root).as_posix()
    before = known.get(image)
    if before and (before['stamps'], before['mask'], before['unreadable']) == (stamps, mask, []):
        return before
    entry: dict = dict(image=image, mask=mask, stamps=stamps, size=None, bits=8, pixels={}, unreadable=[])
    try:
        entry['size'] = list(read_image(pair.image).shape[1::-1])
        entry['bits'] = _bits(pair.image)
    except OSError as error:
        entry['unreadable'].append(str(error))
    if pair.label:
        try:
            entry['pixels'] = {str(raw): pixels for raw, pixels in count_raw(read_mask(pair.label, by_colour)).items()}
        except (OSError, ValueError) as error:
            entry['unreadable'].append(str(error))
    return entry


def _bits(image: Path) -> int:
    """Return the bits of a channel of a PNG; 8 for other formats."""
    with image.open('rb') as file:
        head = file.read(25)
    return head[24] if head.startswith(PNG_SIGNATURE) else 8


def _problems_of(entry: dict, classes: ClassList) -> list[str]:
    lines = list(entry['unreadable'])
    if entry['bits'] > 8:
        lines.append(
            f'{entry["image"]} has {entry["bits"]} bits per channel, and loading keeps the upper 8: save it with 8 '
            'bits, scaled to their range'
        )
    if entry['mask']:
        pixels = {int(raw): count for raw, count in entry['pixels'].items()}
        lines += filter(None, [outside_list(pixels, classes, entry['mask'])])
    return lines


def _describe(split: str, entries: Sequence[dict], classes: ClassList) -> list[str]:
    """Return counts, sizes, label histogram and ignored share of a split, in words."""
    sizes = sorted({tuple(entry['size']) for entry in entries if entry['size']}, key=lambda size: size[0] * size[1])
    masks = sum(entry['mask'] is not None for entry in entries)
    line = f'{split}: {len(entries)} images, {masks} with masks'
    if sizes:
        shown = [f'{width} x {height}' for width, height in (sizes[0], sizes[-1])]
        line += (
            f', {shown[0]} pixels' if len(sizes) == 1 else f', {len(sizes)} sizes from {shown[0]} to {shown[1]} pixels'
        )
    pixels = pixels_by_class(entries, classes)
    total = sum(pixels.values())
    if not total:
        return [line]
    shares = [f'{name} {100 * pixels[name] / total:.2f} %' for name in classes.names if pixels[name]]
    lines = [line, f'  pixels: {", ".join(shares) or "no class"}; ignored {100 * pixels[IGNORE] / total:.2f} %']
    outside = total - pixels[IGNORE] - sum(pixels[name] for name in classes.names)
    if outside:
        lines[-1] += f'; outside {CLASS_FILE} {100 * outside / total:.2f} %'
    absent = [name for name in classes.names if not pixels[name]]
    return lines + [f'  without a pixel: {", ".join(absent)}'] * bool(absent)


def pixels_by_class(entries: Sequence[dict], classes: ClassList) -> Counter[str]:
    """Return the pixels of each class, and of 'ignore', in the files of a manifest."""
    pixels: Counter[str] = Counter()
    for entry in entries:
        for raw, count in entry['pixels'].items():
            pixels[classes.class_name(int(raw)) or f'outside: {classes.raw_name(int(raw))}'] += count
    return pixels


def _write_manifest(root: Path, classes: ClassList, files: Mapping[str, list[dict]], problems: Sequence[str]) -> None:
    splits = {
        split: dict(samples=len(entries), pixels=dict(pixels_by_class(entries, classes)), files=entries)
        for split, entries in files.items()
    }
    content = dict(problems=problems, classes=classes.names, by_colour=classes.by_colour, splits=splits)
    update_atomically(root / MANIFEST, f'{json.dumps(content, indent=1)}\n'.encode())


def _in_two_splits(files: Mapping[str, Sequence[dict]]) -> list[str]:
    where = [(split, entry['image']) for split, entries in files.items() for entry in entries]
    shared = sources_in_two_splits([split for split, _ in where], [image for _, image in where])
    return [f'{len(shared)} images are in two splits: {some(shared)}'] if shared else []


def _leaks(places: Mapping[str, Place], found: Mapping[str, Found], group_by: str) -> list[str]:
    where = [(split, key_of(pair.image, places[split])) for split, one in found.items() for pair in one.pairs]
    shared = sources_in_two_splits([split for split, _ in where], sources_by(group_by, [key for _, key in where]))
    return [f'{len(shared)} sources of group_by={group_by!r} are in two splits: {some(shared)}'] if shared else []
