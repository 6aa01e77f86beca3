"""Inventory of a segmentation dataset on disk: every file with its sizes, and the pixels of every label value.

The manifest is a plain dict, written as JSON beside the data. A file that was read completely is read again only if its
size or modification time differs.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from ...engine.data.preparation import print_report, progress_bar
from ...engine.files import some, update_atomically
from .image_files import read_image
from .label_map import outside, read_label_file
from .pairs import Pair

MANIFEST = 'manifest.json'


def read_manifest(root: Path) -> dict:
    """Return the manifest of a folder, empty if there is none yet.

    Raises:
        ValueError: If the file is not a manifest.
    """
    file = root / MANIFEST
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f'{file} is not JSON ({error}): remove it; the next run writes it again') from error
    if not isinstance(manifest, dict) or 'splits' not in manifest:
        raise ValueError(f'{file} is not a dataset manifest (no "splits"): remove it, or give the right folder')
    return manifest


def write_manifest(
    root: Path,
    pairs: Mapping[str, Sequence[Pair]],
    label_map: Mapping[str, Mapping[int, int]],
    published: Mapping[str, int],
    console: Console,
) -> list[str]:
    """Check every file of every split and write `manifest.json`.

    Args:
        root: Folder of the dataset; paths in the manifest are relative to it.
        pairs: Samples of each split.
        label_map: Label map of each split that has labels.
        published: Published number of samples of each split.
        console: Shows the progress.

    Returns:
        Problems, one line each; they are in the manifest too.
    """
    known = {
        sample['image']: sample for split in read_manifest(root).get('splits', {}).values() for sample in split['files']
    }
    splits, problems = {}, []
    with progress_bar(console) as progress:
        for split, samples in pairs.items():
            reading = progress.track(samples, description=f'{split}: reading')
            files = [_entry(root, pair, known) for pair in reading]
            wrong = [line for entry in files for line in _problems(root, entry, label_map.get(split))]
            if len(files) != published[split]:
                wrong.insert(0, f'{split}: {len(files)} samples, {published[split]} are published')
            splits[split] = _summary(files) | dict(published=published[split], files=files)
            problems += wrong
    problems += _in_two_splits(splits)
    content = dict(problems=problems, splits=splits)
    update_atomically(root / MANIFEST, f'{json.dumps(content, indent=1)}\n'.encode())
    return problems


def report(console: Console, root: Path, problems: Sequence[str]) -> None:
    """Print the counts and the label histogram of each split, and the first problems."""
    lines = []
    for split, found in read_manifest(root)['splits'].items():
        lines.append(f'{split}: {found["samples"]} of {found["published"]} samples, {found["bytes"] / 1e9:.2f} GB')
        if found['pixels']:
            total = sum(found['pixels'].values())
            shares = ', '.join(f'{value}: {100 * pixels / total:.2f} %' for value, pixels in found['pixels'].items())
            lines.append(f'  pixels by raw label: {shares}')
    print_report(console, lines, problems, root / MANIFEST)


def _entry(root: Path, pair: Pair, known: Mapping[str, dict]) -> dict:
    """Return one sample: names, bytes, modification times, sizes (width, height), pixels of each raw label value."""
    stamps = [[path.stat().st_size, path.stat().st_mtime_ns] if path else None for path in pair]
    image = str(pair.image.relative_to(root))
    before = known.get(image)
    label = pair.label and str(pair.label.relative_to(root))
    if before and before['stamps'] == stamps and before['label'] == label and not before['unreadable']:
        return before
    entry: dict = dict(image=image, label=label, stamps=stamps, size=None, label_size=None, pixels={}, unreadable=[])
    try:
        entry['size'] = list(read_image(pair.image).shape[1::-1])
    except OSError as error:
        entry['unreadable'].append(str(error))
    if pair.label:
        try:
            raw = read_label_file(pair.label)
        except OSError as error:
            entry['unreadable'].append(f'label file {pair.label} cannot be read: {error}')
        except ValueError as error:
            entry['unreadable'].append(str(error))
        else:
            counts = np.bincount(raw.ravel(), minlength=256)
            entry['label_size'] = list(raw.shape[::-1])
            entry['pixels'] = {str(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return entry


def _problems(root: Path, entry: dict, label_map: Mapping[int, int] | None) -> list[str]:
    lines = list(entry['unreadable'])
    if entry['size'] and entry['label_size'] and entry['size'] != entry['label_size']:
        lines.append(
            f'image {entry["image"]} is {entry["size"][0]} x {entry["size"][1]} pixels, '
            f'its label file {entry["label_size"][0]} x {entry["label_size"][1]}'
        )
    if label_map is not None:
        pixels = {int(value): count for value, count in entry['pixels'].items()}
        lines += filter(None, [outside(pixels, label_map, root / (entry['label'] or ''))])
    return lines


def _in_two_splits(splits: Mapping[str, dict]) -> list[str]:
    where = defaultdict(list)
    for split, found in splits.items():
        for entry in found['files']:
            where[entry['image']].append(split)
    shared = [f'{image} ({" and ".join(names)})' for image, names in where.items() if len(names) > 1]
    return [f'{len(shared)} images are in two splits: {some(shared)}'] if shared else []


def _summary(files: Sequence[dict]) -> dict:
    pixels: Counter[str] = Counter()
    for entry in files:
        pixels.update(entry['pixels'])
    stamps = [stamp for entry in files for stamp in entry['stamps'] if stamp]
    return dict(
        samples=len(files),
        bytes=sum(size for size, _ in stamps),
        pixels={value: pixels[value] for value in sorted(pixels, key=int)},
    )
