"""From polygons, colours or 0/255 to masks of class indices, with their `classes.txt`."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from rich.console import Console

from ...engine.data.file_kinds import IMAGES, counted, files_below
from ...engine.data.preparation import print_report, progress_bar
from ...engine.files import nearest, require, some, update_atomically
from .annotations import AnnotatedImage, Annotations, read_annotations
from .class_list import CLASS_FILE, IGNORE, IGNORED, ClassList, format_class_list, index_class_list, load_class_list
from .label_map import UNKNOWN
from .masks import MASK_SUFFIXES, count_raw, map_mask, read_mask

BACKGROUND = 'background'
SAME = {'_background_': BACKGROUND, '__background__': BACKGROUND, '__ignore__': IGNORE}
"""Labels of labelme that have a meaning of their own."""

FOREGROUND = 'foreground'
HIGHEST = 255
LISTED = 12


class _Written:
    """What the conversion did, for its report."""

    def __init__(self) -> None:
        self.masks = 0
        self.empty: list[str] = []
        self.overlaps = 0
        self.overlapped_pixels = 0
        self.without_pixel = 0
        self.left_out: Counter[str] = Counter()
        self.problems: list[str] = []


def convert_masks(
    source: Path,
    root: Path,
    console: Console,
    *,
    class_file: Path | None = None,
    unlabelled: str = BACKGROUND,
    threshold: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write `root/masks/` and `root/classes.txt` from annotations or from masks of another kind.

    Accepted are JSON files of labelme, an XML file "CVAT for images 1.1", JSON files of COCO (polygons and run
    lengths), or a folder of masks: of colours or values that a list of classes gives, or of 0 and 255. A mask goes to
    the place below `masks/` that its image has below `images/`, if there are images. Regions are drawn in file order,
    in CVAT by layers; where they overlap, the later one counts.

    Args:
        source: File, or folder of files.
        root: Folder of the data set.
        console: Where progress and the report go.
        class_file: List of classes. Its order is kept, and other labels are errors. For a folder of masks it says what
            their colours or values mean. By default `root/classes.txt`, if it exists and the source has polygons.
        unlabelled: 'background', the class of the pixels in no region, or 'ignore'.
        threshold: Make two classes of grey masks: below this level the first, from it on the second.
        overwrite: Whether to write into a folder of masks that has files already.

    Returns:
        What is wrong, one line each: images without annotation or annotations without image, and others.

    Raises:
        FileNotFoundError: For a source or list that does not exist, naming the nearest thing that does.
        ValueError: For a source of no known kind, malformed files, labels or values outside the list, an argument that
            does not fit the source, or masks that would be overwritten.
    """
    require(source)
    masks = root / 'masks'
    if unlabelled not in (BACKGROUND, IGNORE):
        raise ValueError(f"unlabelled={unlabelled!r}: '{BACKGROUND}' and '{IGNORE}' are accepted")
    if source.resolve() == masks.resolve():
        raise ValueError(
            f'source={str(source)!r}: a folder other than that of the new masks is accepted. Rename it, for example to '
            f'{root / "masks_before"}'
        )
    files = files_below(source) if source.is_dir() else [source]
    documents = [file for file in files if file.suffix.lower() in ('.json', '.xml')]
    pictures = [file for file in files if file.suffix.lower() in (*MASK_SUFFIXES, *IMAGES)]
    if not documents and not pictures:
        raise ValueError(
            f'source={str(source)!r}: .json of labelme or COCO, .xml of CVAT or a folder of masks is accepted, and it '
            f'has {counted(Counter(file.suffix.lower() or file.name for file in files)) or "no files"}'
        )
    if not overwrite and masks.is_dir() and files_below(masks):
        raise ValueError(f'{masks} has files already: remove them, or replace those of the same names with --overwrite')
    written = _Written()
    if documents:
        if threshold is not None:
            raise ValueError(f'threshold={threshold}: accepted for a folder of masks only')
        listed = class_file or (root / CLASS_FILE if (root / CLASS_FILE).is_file() else None)
        annotations = read_annotations(documents, source if source.is_dir() else source.parent)
        classes = _classes_of(annotations, load_class_list(listed) if listed else None, listed, unlabelled)
        _check_class_file(root, classes)
        _draw_all(annotations, classes, root, unlabelled, written, console)
        what = f'{len(annotations.images)} images of {annotations.kind}'
    else:
        classes = _convert_pictures(source, pictures, root, class_file, threshold, written, console)
        what = f'{len(pictures)} masks'
    update_atomically(root / CLASS_FILE, format_class_list(classes).encode())
    print_report(console, _report(what, classes, masks, written), written.problems, masks)
    return written.problems


def _classes_of(annotations: Annotations, listed: ClassList | None, file: Path | None, unlabelled: str) -> ClassList:
    labels = [SAME.get(label, label) for label in annotations.labels]
    labels = list(dict.fromkeys(label for label in labels if label != IGNORE))
    if listed is not None:
        unknown = sorted(set(labels) & _used(annotations) - set(listed.names))
        if unknown:
            raise ValueError(
                f'{len(unknown)} labels are not in {file}: {some(map(repr, unknown))}. It has '
                f'{some(map(repr, listed.names))}'
            )
        names, palette = list(listed.names), list(listed.palette)
    else:
        names = labels
        if unlabelled == BACKGROUND and BACKGROUND not in (name.lower() for name in names):
            names = [BACKGROUND, *names]
        elif BACKGROUND in names:
            names = [BACKGROUND, *(name for name in names if name != BACKGROUND)]
        plain = index_class_list(names).palette
        palette = [annotations.colours.get(name, colour) for name, colour in zip(names, plain, strict=True)]
    if unlabelled == BACKGROUND and _background(names) is None:
        raise ValueError(
            f"unlabelled='{BACKGROUND}': accepted with a class {BACKGROUND} in {file}, which has "
            f"{some(map(repr, names))}; or take '{IGNORE}'"
        )
    if not names or len(names) >= UNKNOWN:
        raise ValueError(f'{len(names)} classes: 1 to {UNKNOWN - 1} are accepted')
    return index_class_list(names, palette)


def _used(annotations: Annotations) -> set[str]:
    return {SAME.get(region.label, region.label) for image in annotations.images for region in image.regions}


def _background(names: Sequence[str]) -> int | None:
    return next((index for index, name in enumerate(names) if name.lower() == BACKGROUND), None)


def _check_class_file(root: Path, classes: ClassList) -> None:
    """Raise ValueError for a list in the folder whose classes are others, or in another order."""
    file = root / CLASS_FILE
    if file.is_file() and load_class_list(file).names != classes.names:
        raise ValueError(
            f'{file} has the classes {some(load_class_list(file).names)}, and the new masks {some(classes.names)}: '
            'remove the file to have a new one written'
        )


def _draw_all(
    annotations: Annotations,
    classes: ClassList,
    root: Path,
    unlabelled: str,
    written: _Written,
    console: Console,
) -> None:
    images = {file.relative_to(root / 'images').as_posix(): file for file in _images(root)}
    index = {name: number for number, name in enumerate(classes.names)} | {IGNORE: IGNORED}
    ground = IGNORED if unlabelled == IGNORE else _background(classes.names) or 0
    places = list(_places(annotations.images, images, root, written))
    with progress_bar(console) as progress:
        for image, name, size in progress.track(places, description='drawing'):
            label = _draw(image, index, (size[1], size[0]), ground, written)
            _save(label, root / 'masks' / f'{name}.png', classes)
            written.masks += 1
            written.left_out += image.left_out
            if not image.regions:
                written.empty.append(image.name)


def _draw(
    image: AnnotatedImage, index: Mapping[str, int], shape: tuple[int, int], ground: int, written: _Written
) -> np.ndarray:
    """Return the mask of an image, (H, W) uint8.

    Args:
        image: Its regions, drawn in their order.
        index: Value of each label.
        shape: (height, width).
        ground: Value of the pixels in no region.
        written: Gets the overlaps.
    """
    label = np.full(shape, ground, np.uint8)
    drawn = np.zeros(shape, bool)
    for region in image.regions:
        inside = region.pixels(*shape)
        value = index[SAME.get(region.label, region.label)]
        covered = int((inside & drawn & (label != value)).sum())
        written.overlaps += covered > 0
        written.overlapped_pixels += covered
        written.without_pixel += not inside.any()
        label[inside] = value
        drawn |= inside
    return label


def _images(root: Path) -> list[Path]:
    return [file for file in files_below(root / 'images') if file.suffix.lower() in IMAGES]


def _places(
    annotated: Sequence[AnnotatedImage], images: Mapping[str, Path], root: Path, written: _Written
) -> Iterator[tuple[AnnotatedImage, str, tuple[int, int]]]:
    """Yield each image with the name of its mask, without suffix, and its size (width, height)."""
    by_key = {_stem(name): name for name in images}
    by_stem: dict[str, list[str]] = {}
    for name in images:
        by_stem.setdefault(PurePosixPath(name).stem, []).append(name)
    seen: dict[str, str] = {}
    for image in annotated:
        name = image.name
        if images:
            same = by_stem.get(PurePosixPath(_stem(name)).name, [])
            found = by_key.get(_stem(name)) or (same[0] if len(same) == 1 else None)
            if found is None:
                wanted = root / 'images' / name
                several = f'{len(same)} images have its name: {some(same)}' if same else nearest(wanted)
                written.problems.append(f'{image.place}: {name} is not below {root / "images"}; {several}')
                continue
            name = found
        key = _stem(name)
        if key in seen:
            written.problems.append(f'{image.place}: {image.name} is annotated in {seen[key]} already')
            continue
        seen[key] = image.place
        size = _size(image, images.get(name), written)
        if size:
            yield image, key, size
    bare = [name for key, name in by_key.items() if key not in seen]
    if bare:
        written.problems.append(
            f'{len(bare)} images have no annotation: {some(bare)}. An annotation without shapes makes all of an image '
            f'{BACKGROUND}'
        )


def _stem(name: str) -> str:
    """Return a path without suffix, and without steps that lead out of the folder."""
    parts = [part for part in PurePosixPath(name).parts if part not in ('/', '..', '.')]
    path = PurePosixPath(*parts)
    return path.with_suffix('').as_posix() if path.suffix.lower() in (*IMAGES, '.json') else path.as_posix()


def _size(image: AnnotatedImage, file: Path | None, written: _Written) -> tuple[int, int] | None:
    """Return width and height; None if file and annotation contradict each other, or neither says."""
    if file is None:
        if image.size is None:
            written.problems.append(f'{image.place} has no imageWidth and imageHeight, and its image does not exist')
        return image.size
    with Image.open(file) as picture:
        size = picture.size
    if image.size not in (None, size):
        width, height = image.size or (0, 0)
        turned = ' Turn the image upright first (mogrify -auto-orient).' if size == (height, width) else ''
        written.problems.append(
            f'{file} is {size[0]} x {size[1]} pixels, and annotated as {width} x {height} in {image.place}.{turned}'
        )
        return None
    return size


def _convert_pictures(
    source: Path,
    pictures: Sequence[Path],
    root: Path,
    class_file: Path | None,
    threshold: int | None,
    written: _Written,
    console: Console,
) -> ClassList:
    """Write masks of indices for masks of another kind."""
    base = source if source.is_dir() else source.parent
    listed = load_class_list(class_file) if class_file else None
    if listed is None and threshold is None:
        listed = _binary(pictures, console)
    names = listed.names if listed else (BACKGROUND, FOREGROUND)
    if threshold is not None and (len(names) != 2 or not 0 < threshold <= HIGHEST):
        raise ValueError(f'threshold={threshold}: 1 to {HIGHEST} is accepted, with a list of two classes or without')
    classes = index_class_list(names, listed.palette if listed else None)
    _check_class_file(root, classes)
    with progress_bar(console) as progress:
        for file in progress.track(pictures, description='converting'):
            try:
                label = _convert(file, listed, threshold)
            except (OSError, ValueError) as error:
                written.problems.append(str(error))
                continue
            _save(label, root / 'masks' / file.relative_to(base).with_suffix('.png'), classes)
            written.masks += 1
    return classes


def _convert(file: Path, listed: ClassList | None, threshold: int | None) -> np.ndarray:
    if threshold is not None:
        try:
            with Image.open(file) as picture:
                grey: np.ndarray = (np.asarray(picture.convert('L')) >= threshold).astype(np.uint8)
        except OSError as error:
            raise OSError(f'mask {file} is damaged, or of a format that Pillow does not read: {error}') from None
        return grey
    assert listed is not None
    return map_mask(read_mask(file, listed.by_colour), listed, file)


def _binary(pictures: Sequence[Path], console: Console) -> ClassList:
    """Return the list for masks of 0 and 255.

    Raises:
        ValueError: For masks that have other values, or colours, naming them.
    """
    values: Counter[int] = Counter()
    colours: Counter[int] = Counter()
    with progress_bar(console) as progress:
        for file in progress.track(pictures, description='reading'):
            try:
                values.update(count_raw(read_mask(file, False)))
            except ValueError as error:
                if 'JPEG' in str(error):
                    raise ValueError(f'{error}, or make two classes of its grey levels with --threshold 128') from None
                colours.update(count_raw(read_mask(file, True)))
    if colours:
        shown = ', '.join(f'#{raw:06x} ({pixels} pixels)' for raw, pixels in colours.most_common(LISTED))
        more = f' and {len(colours) - LISTED} more' if len(colours) > LISTED else ''
        raise ValueError(f'--classes: a file with the colour of each class is needed. Masks have {shown}{more}')
    if not set(values) <= {0, HIGHEST}:
        shown = ', '.join(f'{raw} ({pixels} pixels)' for raw, pixels in sorted(values.items())[:LISTED])
        more = f' and {len(values) - LISTED} more' if len(values) > LISTED else ''
        raise ValueError(
            f'--classes: a file with the value of each class is needed, except for masks of 0 and 255. Masks have '
            f'{shown}{more}'
        )
    return ClassList((BACKGROUND, FOREGROUND), index_class_list('ab').palette, {0: 0, HIGHEST: 1}, False)


def _save(label: np.ndarray, file: Path, classes: ClassList) -> None:
    """Write a mask as palette PNG, in the colours of its classes; what is ignored is white."""
    picture = Image.fromarray(label).convert('P')
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(classes.palette)] = classes.palette
    picture.putpalette(colours.ravel().tolist())
    content = io.BytesIO()
    picture.save(content, format='PNG')
    update_atomically(file, content.getvalue())


def _report(what: str, classes: ClassList, masks: Path, written: _Written) -> list[str]:
    lines = [
        f'{what}: {written.masks} masks are in {masks}',
        f'{len(classes.names)} classes, in {CLASS_FILE}: {", ".join(classes.names)}',
    ]
    if written.overlaps:
        lines.append(
            f'{written.overlaps} regions cover {written.overlapped_pixels} pixels of another class; the later one '
            'counts'
        )
    if written.left_out:
        left_out = ', '.join(f'{number} {kind}' for kind, number in written.left_out.most_common())
        lines.append(f'without an area, not drawn: {left_out}')
    if written.without_pixel:
        lines.append(f'{written.without_pixel} regions are too small or outside: they cover the centre of no pixel')
    if written.empty:
        lines.append(f'{len(written.empty)} images have no region: {some(written.empty)}')
    return lines
