"""One scene, a road with a car on it, as labelme, CVAT and COCO write it."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (20, 30)
"""Height and width."""

ROAD = [(2, 8), (28, 8), (28, 18), (2, 18)]
CAR = [(10, 10), (16, 10), (16, 14), (10, 14)]

SCENE = np.zeros(SIZE, np.uint8)
SCENE[8:18, 2:28] = 1
SCENE[10:14, 10:16] = 2


def png_of(patch: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(patch.astype(np.uint8) * 255).save(content, format='PNG')
    return base64.b64encode(content.getvalue()).decode()


def labelme(file: Path, shapes: list[dict] | None = None, image: str | None = None, **more) -> Path:
    if shapes is None:
        shapes = [dict(label='road', points=ROAD, shape_type='polygon'), dict(label='car', points=CAR)]
    size = dict(imageWidth=SIZE[1], imageHeight=SIZE[0])
    content = dict(version='5.5.0', shapes=shapes, imagePath=image or f'{file.stem}.jpg', imageData=None) | size | more
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def cvat(file: Path, images: dict[str, str], labels: str = 'road #804080,car #dc143c') -> Path:
    """`images` has the shapes of each image; `{road}` and `{car}` stand for the polygons."""
    points = {name: ';'.join(f'{x}.0,{y}.0' for x, y in corners) for name, corners in (('road', ROAD), ('car', CAR))}
    shapes = {
        name: f'<polygon label="{name}" source="manual" occluded="0" points="{own}" z_order="0"/>'
        for name, own in points.items()
    }
    declared = ''.join(
        f'<label><name>{name}</name><color>{colour}</color><type>any</type></label>'
        for name, colour in (label.split() for label in labels.split(','))
    )
    own = ''.join(
        f'<image id="{number}" name="{name}" width="{SIZE[1]}" height="{SIZE[0]}">{text.format(**shapes)}</image>'
        for number, (name, text) in enumerate(images.items())
    )
    file.write_text(
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
        f'<meta><job><labels>{declared}</labels></job></meta>{own}</annotations>'
    )
    return file


def coco(file: Path, images: list[str], segmentations: list[tuple[int, str, object]], names: str = 'road,car') -> Path:
    """`segmentations` has (place in `images`, class, segmentation)."""
    categories = [dict(id=10 * number + 3, name=name) for number, name in enumerate(names.split(','))]
    ids = {category['name']: category['id'] for category in categories}
    content = dict(
        images=[
            dict(id=100 + number, file_name=name, width=SIZE[1], height=SIZE[0]) for number, name in enumerate(images)
        ],
        annotations=[
            dict(id=number, image_id=100 + image, category_id=ids[name], segmentation=segmentation, bbox=[0, 0, 1, 1])
            for number, (image, name, segmentation) in enumerate(segmentations)
        ],
        categories=categories,
    )
    file.write_text(json.dumps(content))
    return file


def flat(points: list[tuple[int, int]]) -> list[int]:
    return [coordinate for point in points for coordinate in point]


def run_lengths(picture: np.ndarray) -> list[int]:
    """COCO's, which are not compressed: down the columns, from a run of zeros."""
    values = picture.T.ravel().astype(int)
    places = np.flatnonzero(np.diff(values)) + 1
    ends = [0, *places.tolist(), len(values)]
    lengths = np.diff(ends).tolist()
    return lengths if not values[0] else [0, *lengths]
