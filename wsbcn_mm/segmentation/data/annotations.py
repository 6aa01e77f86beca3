"""Annotation files of labelme, CVAT and COCO: file in, images with labelled regions out."""

import base64
import io
import json
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .class_list import Colour, unpack
from .regions import decompressed, ellipse, fill_polygon, from_run_lengths, rectangle


class Region(NamedTuple):
    """One labelled shape.

    Attributes:
        label: Name of its class.
        polygons: Corners (x, y) of its parts, (N, 2) each.
        patch: Pixels (h, w) bool in place of polygons; None without.
        corner: Left column and upper row of the patch.
    """

    label: str
    polygons: Sequence[np.ndarray] = ()
    patch: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)

    def pixels(self, height: int, width: int) -> np.ndarray:
        """Return the pixels of the region in an image, (H, W) bool."""
        inside = np.zeros((height, width), bool)
        for polygon in self.polygons:
            inside |= fill_polygon(polygon, height, width)
        if self.patch is not None:
            left, top = self.corner
            rows, columns = max(top, 0), max(left, 0)
            patch = self.patch[rows - top : height - top, columns - left : width - left]
            inside[rows : rows + patch.shape[0], columns : columns + patch.shape[1]] |= patch
        return inside


class AnnotatedImage(NamedTuple):
    """The regions of one image.

    Attributes:
        name: Path of the image as its annotation has it, with forward slashes.
        size: (width, height) in pixels; None where the annotation does not say.
        regions: In the order in which they are drawn.
        left_out: Shapes without an area, by kind.
        place: Where the annotation is, for messages.
    """

    name: str
    size: tuple[int, int] | None
    regions: list[Region]
    left_out: Counter[str]
    place: str


class Annotations(NamedTuple):
    """What annotation files hold.

    Attributes:
        images: Images in file order.
        labels: Class names in the order in which the files declare them; sorted by name if they declare none.
        colours: Colours that the files give to classes.
        kind: 'labelme', 'CVAT' or 'COCO'.
    """

    images: list[AnnotatedImage]
    labels: list[str]
    colours: dict[str, Colour]
    kind: str


def read_annotations(files: Sequence[Path], root: Path) -> Annotations:
    """Read annotation files of one kind.

    Args:
        files: JSON of labelme or COCO, or XML of CVAT.
        root: Folder that they are in; labelme's images are named below it like their files.

    Raises:
        ValueError: For files of none of the three, of several, or malformed ones, with the file.
    """
    readers: dict[str, Callable[[Path, Any, Path], Annotations]] = {
        'labelme': _read_labelme,
        'COCO': _read_coco,
        'CVAT': _read_cvat,
    }
    parts: list[Annotations] = []
    for file in files:
        kind, content = _parse(file)
        if parts and kind != parts[0].kind:
            raise ValueError(f'{file} is of {kind}, and {files[0]} of {parts[0].kind}: convert one kind at a time')
        try:
            parts.append(readers[kind](file, content, root))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f'{file} is not a whole file of {kind}: {type(error).__name__} {error}') from error
    labels = dict.fromkeys(label for part in parts for label in part.labels)
    colours = {label: colour for part in parts for label, colour in part.colours.items()}
    kind = parts[0].kind
    names = sorted(labels) if kind == 'labelme' else list(labels)
    return Annotations([image for part in parts for image in part.images], names, colours, kind)


def _parse(file: Path) -> tuple[str, Any]:
    """Return kind and content of a file."""
    if file.suffix.lower() == '.xml':
        try:
            tree = ET.parse(file).getroot()
        except ET.ParseError as error:
            raise ValueError(f'{file} is not XML: {error}') from None
        if tree.tag != 'annotations':
            raise ValueError(f'{file} has the root <{tree.tag}>: <annotations>, "CVAT for images 1.1", is accepted')
        return 'CVAT', tree
    try:
        content = json.loads(file.read_text(encoding='utf-8-sig'))
    except ValueError as error:
        raise ValueError(f'{file} is not JSON: {error}') from None
    if isinstance(content, dict) and 'shapes' in content:
        return 'labelme', content
    if isinstance(content, dict) and {'images', 'annotations', 'categories'} <= set(content):
        return 'COCO', content
    keys = ', '.join(list(content)[:6]) if isinstance(content, dict) else type(content).__name__
    raise ValueError(
        f'{file} has {keys}: "shapes", as labelme writes, or "images", "annotations" and "categories", as COCO has, '
        'are accepted'
    )


def _read_labelme(file: Path, content: Mapping[str, Any], root: Path) -> Annotations:
    regions, left_out = [], Counter[str]()
    for shape in content['shapes']:
        region = _labelme_region(file, shape)
        if region is None:
            left_out[f'{shape.get("shape_type") or "polygon"} of {len(shape["points"])} points'] += 1
        else:
            regions.append(region)
    size = (content.get('imageWidth'), content.get('imageHeight'))
    written = PurePosixPath(str(content.get('imagePath') or file.name).replace('\\', '/')).name
    # An image that was renamed together with its file is called like the file.
    name = written if Path(written).stem == file.stem else file.name
    name = (file.parent.relative_to(root) / name).as_posix()
    known = (int(size[0]), int(size[1])) if size[0] and size[1] else None
    image = AnnotatedImage(name, known, regions, left_out, str(file))
    return Annotations([image], [region.label for region in regions], {}, 'labelme')


def _labelme_region(file: Path, shape: Mapping[str, Any]) -> Region | None:
    label, kind = str(shape['label']).strip(), shape.get('shape_type') or 'polygon'
    points = np.asarray(shape['points'], np.float64).reshape(-1, 2)
    if kind == 'polygon' and len(points) >= 3:
        return Region(label, [points])
    if kind == 'rectangle' and len(points) == 2:
        return Region(label, [rectangle(*points.min(axis=0), *points.max(axis=0))])
    if kind == 'circle' and len(points) == 2:
        radius = math.dist(*points)
        return Region(label, [ellipse(points[0, 0], points[0, 1], radius, radius)])
    if kind == 'mask' and shape.get('mask'):
        try:
            with Image.open(io.BytesIO(base64.b64decode(shape['mask']))) as picture:
                patch = np.asarray(picture.convert('L')) > 0
        except (OSError, ValueError) as error:
            raise ValueError(f'{file}: the mask of a shape {label!r} cannot be read: {error}') from None
        left, top = points.min(axis=0)
        return Region(label, patch=patch, corner=(round(left), round(top)))
    return None


def _read_coco(file: Path, content: Mapping[str, Any], root: Path) -> Annotations:
    names = {category['id']: str(category['name']).strip() for category in content['categories']}
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        raise ValueError(f'{file}: category {twice[0]!r} occurs more than once')
    images = {
        image['id']: AnnotatedImage(
            str(image['file_name']).replace('\\', '/'), (image['width'], image['height']), [], Counter(), str(file)
        )
        for image in content['images']
    }
    for annotation in content['annotations']:
        place = f'{file}: annotation {annotation.get("id")}'
        if annotation['image_id'] not in images:
            raise ValueError(f'{place} is of image {annotation["image_id"]}, which the file does not have')
        if annotation['category_id'] not in names:
            raise ValueError(f'{place} is of category {annotation["category_id"]}, which the file does not have')
        image = images[annotation['image_id']]
        region = _coco_region(place, names[annotation['category_id']], annotation.get('segmentation'), image)
        if region is None:
            image.left_out['box without a polygon'] += 1
        else:
            image.regions.append(region)
    return Annotations(list(images.values()), list(names.values()), {}, 'COCO')


def _coco_region(place: str, label: str, segmentation: Any, image: AnnotatedImage) -> Region | None:
    if isinstance(segmentation, Mapping):
        height, width = segmentation['size']
        if (width, height) != image.size:
            raise ValueError(f'{place} has run lengths of {width} x {height} pixels, its image is {image.size}')
        counts = segmentation['counts']
        try:
            lengths = decompressed(counts) if isinstance(counts, str) else counts
            return Region(label, patch=from_run_lengths(lengths, height, width, by_column=True))
        except ValueError as error:
            raise ValueError(f'{place}: {error}') from None
    polygons = [np.asarray(part, np.float64).reshape(-1, 2) for part in segmentation or () if len(part) >= 6]
    return Region(label, polygons) if polygons else None


def _read_cvat(file: Path, tree: ET.Element, root: Path) -> Annotations:
    if tree.find('track') is not None:
        raise ValueError(f'{file} has tracks of a video: export the task as "CVAT for images 1.1"')
    labels, colours = [], {}
    for label in tree.iterfind('./meta//label'):
        name = (label.findtext('name') or '').strip()
        if name and label.findtext('type', 'any') != 'tag':
            labels.append(name)
            colour = (label.findtext('color') or '').removeprefix('#')
            if len(colour) == 6:
                colours[name] = unpack(int(colour, 16))
    images = []
    for element in tree.iterfind('image'):
        size = (int(element.attrib['width']), int(element.attrib['height']))
        name = element.attrib['name'].replace('\\', '/')
        regions: list[tuple[int, Region]] = []
        left_out = Counter[str]()
        for shape in element:
            if shape.tag == 'tag':
                continue
            region = _cvat_region(file, name, shape)
            if region is None:
                left_out[shape.tag] += 1
            else:
                regions.append((int(shape.get('z_order', 0)), region))
        # CVAT shows higher layers above lower ones; shapes of one layer stay in file order.
        drawn = [region for _, region in sorted(regions, key=lambda one: one[0])]
        images.append(AnnotatedImage(name, size, drawn, left_out, str(file)))
    used = [region.label for image in images for region in image.regions]
    return Annotations(images, [*labels, *sorted(set(used) - set(labels))], colours, 'CVAT')


def _cvat_region(file: Path, image: str, shape: ET.Element) -> Region | None:
    at = shape.attrib
    label, degrees = at['label'].strip(), float(at.get('rotation', 0))
    if shape.tag == 'polygon':
        points = np.array([[float(one) for one in pair.split(',')] for pair in at['points'].split(';')])
        return Region(label, [points]) if len(points) >= 3 else None
    if shape.tag == 'box':
        left, top, right, bottom = (float(at[side]) for side in ('xtl', 'ytl', 'xbr', 'ybr'))
        return Region(label, [rectangle(left, top, right, bottom, degrees)])
    if shape.tag == 'ellipse':
        x, y, radius_x, radius_y = (float(at[side]) for side in ('cx', 'cy', 'rx', 'ry'))
        return Region(label, [ellipse(x, y, radius_x, radius_y, degrees)])
    if shape.tag == 'mask':
        left, top, width, height = (int(at[side]) for side in ('left', 'top', 'width', 'height'))
        try:
            counts = [int(count) for count in at['rle'].split(',')]
            patch = from_run_lengths(counts, height, width, by_column=False)
        except ValueError as error:
            raise ValueError(f'{file}: a mask {label!r} of {image}: {error}') from None
        return Region(label, patch=patch, corner=(left, top))
    return None
