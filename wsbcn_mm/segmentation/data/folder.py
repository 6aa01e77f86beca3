"""A folder of images and masks as a data set: `images/`, `masks/` and `classes.txt`, in sub-folders or by lists.

    images/{train,val,test}/<name>.jpg    masks/{train,val,test}/<name>.png    classes.txt
    {train,val,test}/images/<name>.jpg    {train,val,test}/masks/<name>.png    classes.txt
    images/<name>.jpg    masks/<name>.png    train.txt  val.txt  test.txt      classes.txt

Suffixes and deeper folders do not matter. A mask has the name of its image, or all masks have one ending more, as in
`<name>_mask.png`.
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

from ...engine.data.file_kinds import IMAGES, counted, files_below, suffix_of
from ...engine.data.folder_task import SPLITS
from ...engine.data.left_right import directed, mirror_labels
from ...engine.data.watchdog import WatchedItems
from ...engine.files import nearest, some
from .class_list import CLASS_FILE, IGNORED, ClassList, load_class_list
from .inventory import read_manifest
from .label_map import UNKNOWN
from .masks import LOSSY, MASK_SUFFIXES, count_raw, map_mask, outside_list, read_mask
from .pairs import Pair

ORIENTATION = 0x0112
"""EXIF tag."""

MASKS_READ = 200

SUFFIXES_OF_HOST = ('img_suffix', 'seg_map_suffix', 'ann_file', 'data_prefix')
"""Arguments of mmseg's data sets that say where files are, which the folder says here."""


class Place(NamedTuple):
    """Where a split is.

    Attributes:
        images: Folder of its images.
        masks: Folder of its masks; None if it has none.
        names: List of its images; None if all in the folder are its own.
        shared: Whether other splits have their masks in the same folder.
    """

    images: Path
    masks: Path | None
    names: Path | None = None
    shared: bool = False


class Found(NamedTuple):
    """What a split has.

    Attributes:
        pairs: Images with their masks, sorted by path, or in the order of the list.
        problems: What does not fit, one line each.
        notes: What was assumed, one line each.
        skipped: Files that are neither image nor mask, by suffix.
    """

    pairs: list[Pair]
    problems: list[str]
    notes: list[str]
    skipped: Counter[str]


def find_splits(root: Path) -> dict[str, Place]:
    """Return the place of each split of a folder; no split if the folder only has images and masks in one piece.

    Raises:
        FileNotFoundError: If there are no images, naming the nearest thing that exists.
        ValueError: If sub-folders and lists contradict each other.
    """
    images = root / 'images'
    if not images.is_dir():
        first = {split: _first_folder(root, names, 'images') for split, names in SPLITS.items()}
        places = {split: Place(at / 'images', _folder(at / 'masks')) for split, at in first.items() if at}
        if not places:
            raise FileNotFoundError(
                f'{images} does not exist; {nearest(images)}. Accepted are images/ with masks/ beside it, both '
                'undivided or with train/ and val/, or train/ and val/ with images/ and masks/ in each'
            )
        return places
    masks = root / 'masks'
    folders = {split: _first_folder(images, names) for split, names in SPLITS.items()}
    lists = {split: _first_list(root, names) for split, names in SPLITS.items()}
    if any(folders.values()):
        if any(lists.values()):
            raise ValueError(
                f'{root} has the sub-folders {_names(folders)} in images/ and the lists {_names(lists)}: keep one of '
                'the two'
            )
        divided = any(_first_folder(masks, names) for names in SPLITS.values())
        return {
            split: Place(folder, _first_folder(masks, SPLITS[split]) if divided else _folder(masks), shared=not divided)
            for split, folder in folders.items()
            if folder
        }
    return {split: Place(images, _folder(masks), file, shared=True) for split, file in lists.items() if file}


def place_of(root: Path, split: str) -> Place:
    """Return the place of one split.

    Raises:
        FileNotFoundError: As `find_splits`.
        ValueError: For a split that the folder does not have, naming those that it has.
    """
    places = find_splits(root)
    if split in places:
        return places[split]
    if not places:
        raise ValueError(
            f'split={split!r}: {root} is not split yet. Run python tools/data/prepare_folder.py {root}, which writes '
            'train.txt and val.txt'
        )
    there = ', '.join(f'{one!r} ({place.names or place.images})' for one, place in places.items())
    raise ValueError(f'split={split!r}: {root} has {there}')


def pair_files(place: Place, root: Path, *, need_masks: bool = True) -> Found:
    """Pair the images of a split with their masks by name, and say what does not fit.

    Args:
        place: Where they are.
        root: Folder of the data set; names in messages are relative to it.
        need_masks: Whether it is wrong that none of the images has a mask.
    """
    images, skipped, problems = _by_key(place.images, IMAGES, root)
    if not images:
        there = f', but {counted(skipped)}' if skipped else ''
        problems.append(f'{_below(place.images, root)} has no image{there}. Accepted: {" ".join(IMAGES)}')
    keys = list(images)
    if place.names is not None:
        keys, wrong = _listed(place, images, root)
        problems += wrong
    if place.masks is None:
        if need_masks:
            inside = place.images.name == 'images'
            wanted = place.images.parent / 'masks' if inside else root / 'masks' / place.images.name
            problems.append(f'{_below(wanted, root)} does not exist; {nearest(wanted)}')
        return Found([Pair(images[key], None) for key in keys], problems, [], skipped)
    masks, others, twice = _by_key(place.masks, (*MASK_SUFFIXES, *IMAGES), root)
    ending = _common_ending(images, masks)
    notes = []
    if ending:
        notes.append(f'{_below(place.masks, root)}: masks are named <image>{ending}{next(iter(masks.values())).suffix}')
    pairs = [Pair(images[key], masks[key + ending]) for key in keys if key + ending in masks]
    missing = [key for key in keys if key + ending not in masks]
    if not need_masks and not pairs:
        return Found([Pair(images[key], None) for key in keys], problems, [], skipped + others)
    for key in missing:
        wanted = place.masks / f'{key}{ending}.png'
        problems.append(
            f'{_below(images[key], root)} has no mask {_below(wanted, root)}; {_nearest_file(wanted, masks)}'
        )
    if not place.shared:
        wanted_masks = {key + ending for key in images}
        for key in sorted(set(masks) - wanted_masks):
            like = _nearest_file(place.images / f'{key}{masks[key].suffix}', images)
            problems.append(f'{_below(masks[key], root)} has no image; {like}')
    return Found(pairs, problems + twice, notes, skipped + others)


def check_headers(pairs: Sequence[Pair], root: Path, *, damage: bool = True) -> list[str]:
    """Return what is wrong with the pairs as far as the heads of their files show it: sizes, formats, orientation.

    Args:
        pairs: Images and masks.
        root: Folder of the data set; names in messages are relative to it.
        damage: Whether to name files that are no images.
    """
    with ThreadPoolExecutor(8) as pool:
        lines = pool.map(lambda pair: _check_header(pair, root, damage), pairs)
        return [line for line in lines if line]


def check_values(pairs: Sequence[Pair], root: Path, classes: ClassList) -> list[str]:
    """Return what is wrong with the values of the masks.

    Masks that `manifest.json` knows unchanged are judged by it, without being read. Of the others, `MASKS_READ` spread
    over all of them are read.
    """
    known = {}
    manifest = read_manifest(root)
    if manifest.get('by_colour') == classes.by_colour:
        entries = (entry for split in manifest['splits'].values() for entry in split['files'] if entry.get('mask'))
        known = {entry['mask']: entry for entry in entries if not entry['unreadable']}
    problems, unknown = [], []
    for mask in (pair.label for pair in pairs if pair.label):
        entry, found = known.get(_below(mask, root)), mask.stat()
        if entry and entry['stamps'][1] == [found.st_size, found.st_mtime_ns]:
            pixels = {int(raw): count for raw, count in entry['pixels'].items()}
            problems.append(outside_list(pixels, classes, mask))
        else:
            unknown.append(mask)
    with ThreadPoolExecutor(8) as pool:
        read = unknown[:: -(-len(unknown) // MASKS_READ) or 1]
        problems += pool.map(lambda mask: _outside(mask, classes), read)
    return [problem for problem in problems if problem]


def _outside(mask: Path, classes: ClassList) -> str:
    try:
        return outside_list(count_raw(read_mask(mask, classes.by_colour)), classes, mask)
    except (OSError, ValueError) as error:
        return str(error)


def unused_files(root: Path, places: Mapping[str, Place], found: Mapping[str, Found]) -> list[str]:
    """Return images and masks of the folder that no split uses, one line for each kind."""
    used = {file for one in found.values() for pair in one.pairs for file in pair}
    # A file of a split's own folder that does not fit has a line of its own.
    own = [folder for place in places.values() if not place.shared for folder in (place.images, place.masks) if folder]
    lines = []
    for kind, suffixes in (('images', IMAGES), ('masks', (*MASK_SUFFIXES, *IMAGES))):
        files = _by_key(root / kind, suffixes, root)[0].values()
        unused = [file for file in files if file not in used and not any(map(file.is_relative_to, own))]
        if unused and places:
            lines.append(f'{len(unused)} {kind} are in no split: {some(_below(file, root) for file in unused)}')
    return lines


@DATASETS.register_module()
class FolderSegDataset(WatchedItems, BaseSegDataset):
    """Images and masks of a folder, with strict labels; its pipeline reads the masks by `LoadStrictLabels`.

    Every pair is checked before training: a missing mask or image, another size, a format that changes values. So are
    the values or colours of all masks that `tools/data/prepare_folder.py` has read, and of 200 of the others. A value
    outside `classes.txt` is an error in any case when the mask is loaded.

    Its metainfo has the classes and colours of `classes.txt`, and `label_ids`, the values of the masks, in which
    predictions are written; none for masks of colours.

    Args:
        split: 'train', 'val' or 'test'. The last one may lack masks; it cannot be evaluated then.
        data_root: The folder.
        class_file: List of classes, in the folder.
        pipeline: Transforms.
        metainfo: Further information for the data set; its classes, if any, must be those of the list.
        **kwargs: Those of mmseg's data set, without those that say where files are.

    Raises:
        FileNotFoundError: If the folder, its images or its list of classes do not exist.
        ValueError: For a split that the folder does not have, files that do not fit, naming them, a malformed list, a
            pipeline that reads labels by other steps, or one that mirrors classes of a direction without their labels.
    """

    def __init__(
        self,
        split: str,
        data_root: str,
        class_file: str = CLASS_FILE,
        pipeline: Sequence[Any] = (),
        metainfo: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f'split={split!r}: {", ".join(map(repr, SPLITS))} are accepted')
        for name in (*SUFFIXES_OF_HOST, 'reduce_zero_label', 'ignore_index'):
            if name in kwargs:
                remedy = 'finds its files by data_root and split' if name in SUFFIXES_OF_HOST else f'takes {CLASS_FILE}'
                raise ValueError(f'{name}={kwargs[name]!r}: not accepted, FolderSegDataset {remedy}')
        self.split = split
        self.class_list = load_class_list(Path(data_root) / class_file)
        names = list(self.class_list.names)
        if metainfo and list(metainfo.get('classes') or names) != names:
            raise ValueError(
                f'metainfo.classes={metainfo["classes"]!r}: the classes of {Path(data_root) / class_file} are '
                f'accepted, {names!r}'
            )
        _refuse_loose_labels(pipeline)
        _refuse_plain_flips(pipeline, names)
        own = dict(classes=self.class_list.names, palette=[list(colour) for colour in self.class_list.palette])
        super().__init__(
            data_root=str(data_root),
            data_prefix=dict(img_path='', seg_map_path=''),
            metainfo=own | dict(metainfo or {}),
            pipeline=pipeline,
            **kwargs,
        )
        values = [raw for raw, index in self.class_list.label_map.items() if index != IGNORED]
        if not self.class_list.by_colour and max(values) <= 255 and UNKNOWN not in values:
            self._metainfo['label_ids'] = tuple(values)

    def load_data_list(self) -> list[dict]:
        root = Path(self.data_root)
        place = place_of(root, self.split)
        found = pair_files(place, root, need_masks=self.split != 'test')
        problems = found.problems + check_headers(found.pairs, root)
        problems = problems or check_values(found.pairs, root, self.class_list)
        loads_labels = any(kind == 'LoadStrictLabels' for kind, _ in steps_of(self.pipeline.transforms))
        if loads_labels and any(pair.label is None for pair in found.pairs):
            problems.append(
                "split='test' has no masks, so it cannot be evaluated: take split='val', or write its predictions with "
                'tools/test.py --format-only'
            )
        if problems:
            # Three lines tell what is wrong; the command tells all.
            shown = '; '.join(problems[:3])
            more = f'; and {len(problems) - 3} more, which python tools/data/prepare_folder.py {root} lists'
            raise ValueError(f'data_root={str(root)!r}, split={self.split!r}: {shown}{more * (len(problems) > 3)}')
        return [self._sample(pair) for pair in found.pairs]

    def get_data_info(self, idx: int) -> dict:
        info: dict = super().get_data_info(idx)
        info['mask_reader'] = MaskReader(self.class_list)
        return info

    def _sample(self, pair: Pair) -> dict:
        sample = dict(img_path=str(pair.image), reduce_zero_label=False, seg_fields=[])
        if pair.label is not None:
            sample['seg_map_path'] = str(pair.label)
        return sample


class MaskReader:
    """What `LoadStrictLabels` reads masks with, in place of a label map of values from 0 to 255."""

    def __init__(self, classes: ClassList) -> None:
        self.classes = classes

    def read(self, file: str | Path) -> np.ndarray:
        """Return the raw values of a mask; see `read_mask`."""
        return read_mask(file, self.classes.by_colour)

    def map(self, raw: np.ndarray, file: str | Path) -> np.ndarray:
        """Return the classes of the raw values; see `map_mask`."""
        return map_mask(raw, self.classes, file)


def steps_of(pipeline: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield type name and step of a pipeline, also of steps inside others; a step is a dict or a transform."""
    for step in pipeline:
        is_dict = isinstance(step, Mapping)
        kind = step.get('type') if is_dict else type(step).__name__
        yield getattr(kind, '__name__', kind), step
        inner = step.get('transforms', ()) if is_dict else getattr(step, 'transforms', ())
        for one in inner if isinstance(inner, Sequence) else ():
            yield from steps_of(one if isinstance(one, Sequence) else [one])


def _refuse_loose_labels(pipeline: Sequence[Any]) -> None:
    if any(kind == 'LoadAnnotations' for kind, _ in steps_of(pipeline)):
        raise ValueError(
            'LoadAnnotations in the pipeline of FolderSegDataset: LoadStrictLabels is accepted, which refuses values '
            'outside classes.txt'
        )


def _refuse_plain_flips(pipeline: Sequence[Any], names: Sequence[str]) -> None:
    changed = directed(names)
    if not changed:
        return
    mirrored = mirror_labels(names)
    pairs = [(label, other) for label, other in enumerate(mirrored) if other is not None and label < other]
    for kind, step in steps_of(pipeline):
        if kind == 'RandomRotFlip':
            raise ValueError(
                f'RandomRotFlip with the classes {some(map(repr, changed))}: not accepted, because a mirror exchanges '
                'them. RandomFlip can, with swap_seg_labels'
            )
        if kind != 'RandomFlip':
            continue
        arguments = step if isinstance(step, Mapping) else vars(step)
        direction = arguments.get('direction') or 'horizontal'
        directions = {direction} if isinstance(direction, str) else set(direction)
        swapped = {tuple(sorted(pair)) for pair in arguments.get('swap_seg_labels') or ()}
        if not directions & {'horizontal', 'diagonal'}:
            continue
        if None in mirrored:
            raise ValueError(
                f'RandomFlip with the classes {some(map(repr, changed))}: not accepted, no class is the mirror '
                'image of some. Remove the flip, or rename classes without a direction'
            )
        if swapped != set(pairs):
            raise ValueError(
                f'RandomFlip with the classes {some(map(repr, changed))}: accepted with swap_seg_labels={pairs}, '
                'because a mirror exchanges them'
            )


def _check_header(pair: Pair, root: Path, damage: bool) -> str | None:
    name = _below(pair.image, root)
    try:
        with Image.open(pair.image) as image:
            size = image.size
            # Of a PNG, Pillow would decode all pixels to look behind them.
            exif = image.getexif() if image.format != 'PNG' or 'exif' in image.info else {}
    except (OSError, SyntaxError) as error:
        return f'{name} is damaged, or of a format that Pillow does not read: {error}' if damage else None
    orientation = exif.get(ORIENTATION, 1)
    if pair.label is None:
        return None
    if orientation not in (0, 1):
        return (
            f'{name} has EXIF orientation {orientation}: loading turns the image and not its mask. Save the image '
            'upright (mogrify -auto-orient) if the mask fits what a viewer shows, else remove the tag'
        )
    mask_name = _below(pair.label, root)
    try:
        with Image.open(pair.label) as mask:
            if mask.format in LOSSY:
                return f'{mask_name} is a {mask.format}, which changes values: save masks as PNG'
            mask_size = mask.size
    except (OSError, SyntaxError) as error:
        return f'{mask_name} is damaged, or of a format that Pillow does not read: {error}' if damage else None
    if size != mask_size:
        return f'{name} is {size[0]} x {size[1]} pixels, its mask {mask_name} {mask_size[0]} x {mask_size[1]}'
    return None


def _by_key(folder: Path, suffixes: Sequence[str], root: Path) -> tuple[dict[str, Path], Counter[str], list[str]]:
    """Return files by their path below `folder` without suffix, the other files by suffix, and keys of two files."""
    files: dict[str, Path] = {}
    skipped: Counter[str] = Counter()
    also: dict[str, list[Path]] = defaultdict(list)
    for file in files_below(folder):
        if file.suffix.lower() not in suffixes:
            skipped[suffix_of(file)] += 1
            continue
        key = file.relative_to(folder).with_suffix('').as_posix()
        if key in files:
            also[key].append(file)
        files.setdefault(key, file)
    twice = [
        f'{len(more) + 1} files are named {key!r}: {some(_below(file, root) for file in (files[key], *more))}'
        for key, more in also.items()
    ]
    return files, skipped, twice


def key_of(image: Path, place: Place) -> str:
    """Return the name of an image: its path below the folder of its split, without suffix."""
    return image.relative_to(place.images).with_suffix('').as_posix()


def _listed(place: Place, images: Mapping[str, Path], root: Path) -> tuple[list[str], list[str]]:
    """Return the keys that a list names, and what is wrong with it."""
    assert place.names is not None
    list_name = _below(place.names, root)
    lines = [line.strip() for line in place.names.read_text(encoding='utf-8-sig').splitlines()]
    names = [line for line in lines if line]
    keys, problems = [], []
    if not names:
        problems.append(f'{list_name} has no names')
    by_name = {file.relative_to(place.images).as_posix(): key for key, file in images.items()}
    by_name |= {f'images/{name}': key for name, key in by_name.items()} | {key: key for key in images}
    for name, times in Counter(names).items():
        if times > 1:
            problems.append(f'{list_name} has {name!r} {times} times')
        if name in by_name:
            keys.append(by_name[name])
        else:
            problems.append(
                f'{list_name} has {name!r}, which is no image; {_nearest_file(place.images / name, images)}'
            )
    return keys, problems


def _common_ending(images: Mapping[str, Path], masks: Mapping[str, Path]) -> str:
    """Return what most masks have behind the names of their images; '' if some have the names of their images."""
    if any(key in images for key in masks):
        return ''
    endings = Counter(key[cut:] for key in masks for cut in range(1, len(key)) if key[:cut] in images)
    ending, times = max(endings.items(), key=lambda item: item[1], default=('', 0))
    return ending if 2 * times > len(images) else ''


def _nearest_file(wanted: Path, files: Mapping[str, Path]) -> str:
    """Return the nearest name among files, which may be in another folder than `wanted`."""
    stems = {file.stem: file for file in files.values()}
    like = [stem for stem in stems if stem.startswith(wanted.stem) or (stem and wanted.stem.startswith(stem))]
    like = like or difflib.get_close_matches(wanted.stem, stems, n=1, cutoff=0.3)
    return f'nearest existing name: {stems[like[0]]}' if like else nearest(wanted)


def _first_folder(root: Path, names: Sequence[str], inside: str = '') -> Path | None:
    return next((root / name for name in names if (root / name / inside).is_dir()), None)


def _first_list(root: Path, names: Sequence[str]) -> Path | None:
    files = (root / folder / f'{name}.txt' for folder in ('', 'splits', 'lists') for name in names)
    return next((file for file in files if file.is_file()), None)


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def _names(places: Mapping[str, Path | None]) -> str:
    return ', '.join(place.name for place in places.values() if place)


def _below(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)
