"""tools/data/convert_masks.py: each kind of annotation becomes the same masks, and what does not fit is named."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.segmentation.annotation_files import CAR, ROAD, SCENE, SIZE, coco, cvat, flat, labelme, png_of, run_lengths
from tests.segmentation.folders import COLOURS, save_image, save_mask
from tests.tools.tiny_runs import run_tool
from wsbcn_mm.segmentation.data.convert_masks import convert_masks
from wsbcn_mm.segmentation.data.prepare_folder import prepare_segmentation_folder

NO_CONSOLE = Console(file=StringIO())


def convert(source: Path, root: Path, **options) -> tuple[list[str], str]:
    """Problems and what was printed."""
    printed = StringIO()
    problems = convert_masks(source, root, Console(file=printed, width=200), **options)
    return problems, printed.getvalue()


def error_of(source: Path, root: Path, **options) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        convert(source, root, **options)
    return str(error.value)


def mask(root: Path, name: str = 'a') -> np.ndarray:
    return np.asarray(Image.open(root / 'masks' / f'{name}.png'))


def lines(root: Path) -> list[str]:
    return (root / 'classes.txt').read_text().splitlines()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one image."""
    save_image(tmp_path / 'set/images/a.jpg', size=SIZE)
    return tmp_path / 'set'


def labelme_source(tmp_path: Path) -> Path:
    return labelme(tmp_path / 'json' / 'a.json').parent


def cvat_source(tmp_path: Path) -> Path:
    return cvat(tmp_path / 'annotations.xml', {'a.jpg': '{road}{car}'})


def coco_source(tmp_path: Path) -> Path:
    return coco(tmp_path / 'instances.json', ['a.jpg'], [(0, 'road', [flat(ROAD)]), (0, 'car', [flat(CAR)])])


@pytest.mark.parametrize('write', [labelme_source, cvat_source, coco_source])
def test_polygons(tmp_path: Path, root: Path, write, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_tool('data/convert_masks.py', write(tmp_path), root)
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    value = {line.split()[0]: int(line.split()[1]) for line in lines(root)}
    expected = np.array([0, value['road'], value['car']])[SCENE]
    assert np.array_equal(mask(root), expected)
    assert value == dict(background=0, ignore=255) | (
        dict(car=1, road=2) if write is labelme_source else dict(road=1, car=2)
    )
    assert f': 1 masks are in {root}/masks\n' in printed
    assert '1 regions cover 24 pixels of another class; the later one counts\n' in printed
    assert printed.endswith('\ncomplete\n')
    save_image(root / 'images/b.png', size=SIZE)
    save_mask(root / 'masks/b.png', mask(root))
    assert prepare_segmentation_folder(root, NO_CONSOLE) == []


def test_colours_of_cvat_are_kept(tmp_path: Path, root: Path) -> None:
    convert(cvat_source(tmp_path), root)
    assert lines(root) == ['background 0 #000000', 'road 1 #804080', 'car 2 #dc143c', 'ignore 255']
    assert Image.open(root / 'masks/a.png').convert('RGB').getpixel((12, 12)) == (220, 20, 60)


def test_masks_go_where_the_images_are(tmp_path: Path) -> None:
    root = tmp_path / 'set'
    for name in ('train/cam 1/a.jpg', 'val/b.PNG'):
        save_image(root / 'images' / name, size=SIZE)
    (root / 'images/val/b.PNG').rename(root / 'images/val/b.v2.png')
    source = coco(tmp_path / 'all.json', ['elsewhere/a.jpg', 'C:\\data\\val\\b.v2.png'], [(0, 'road', [flat(ROAD)])])
    problems, printed = convert(source, root)
    assert problems == []
    assert (mask(root, 'train/cam 1/a') == (SCENE > 0)).all()
    assert not mask(root, 'val/b.v2').any()
    assert '1 images have no region: C:/data/val/b.v2.png\n' in printed
    alone = tmp_path / 'alone'
    convert(source, alone)
    assert {str(file.relative_to(alone / 'masks')) for file in (alone / 'masks').rglob('*.png')} == {
        'elsewhere/a.png', 'C:/data/val/b.v2.png',
    }  # fmt: skip


def test_other_shapes_of_labelme(tmp_path: Path, root: Path) -> None:
    shapes = [
        dict(label='box', points=[[28, 18], [2, 8]], shape_type='rectangle'),
        dict(label='blob', points=[[10, 10], [15, 13]], shape_type='mask', mask=png_of(np.ones((4, 6), bool))),
        dict(label='disc', points=[[5, 5], [5, 3]], shape_type='circle'),
        dict(label='blob', points=[[1, 1]], shape_type='point'),
        dict(label='box', points=[[1, 1], [9, 9]], shape_type='line'),
        dict(label='box', points=[[1, 1], [9, 9]], shape_type='polygon'),
        dict(label='box', points=[[3.6, 1], [3.8, 1], [3.8, 3]], shape_type='polygon'),
    ]
    _, printed = convert(labelme(tmp_path / 'a.json', shapes), root)
    assert lines(root)[:4] == ['background 0 #000000', 'blob 1 #800000', 'box 2 #008000', 'disc 3 #808000']
    drawn = mask(root)
    assert np.array_equal((drawn == 2) | (drawn == 1), (SCENE > 0) & (drawn != 3))
    assert np.array_equal(drawn == 1, SCENE == 2)
    assert (drawn == 3).sum() == 12
    left_out = '1 point of 1 points, 1 line of 2 points, 1 polygon of 2 points'
    assert f'without an area, not drawn: {left_out}\n' in printed
    assert '1 regions are too small or outside: they cover the centre of no pixel\n' in printed


def test_other_shapes_of_cvat(tmp_path: Path, root: Path) -> None:
    rle = ','.join(['0', '24'])
    text = (
        '{car}<box label="road" xtl="2" ytl="8" xbr="28" ybr="18" z_order="-1"/><tag label="road"/>'
        f'<mask label="car" rle="{rle}" left="10" top="10" width="6" height="4" z_order="1"/>'
        '<polyline label="road" points="1,1;2,2"/><points label="car" points="1,1"/>'
        '<ellipse label="car" cx="5" cy="4" rx="2" ry="2" z_order="3"/>'
    )
    _, printed = convert(cvat(tmp_path / 'a.xml', {'a.jpg': text}), root)
    drawn = mask(root)
    assert (drawn[:8] == 2).sum() == 12
    assert np.array_equal(drawn[8:], SCENE[8:])
    assert 'without an area, not drawn: 1 polyline, 1 points\n' in printed


def test_run_lengths_of_coco(tmp_path: Path, root: Path) -> None:
    road = dict(size=list(SIZE), counts=run_lengths(SCENE > 0))
    car = dict(size=list(SIZE), counts=run_lengths(SCENE == 2))
    two_parts = [flat(CAR[:3]), flat([CAR[2], CAR[3], CAR[0]])]
    for second in (car, two_parts):
        source = coco(tmp_path / 'a.json', ['a.jpg'], [(0, 'road', road), (0, 'car', second), (0, 'car', [])])
        _, printed = convert(source, root, overwrite=True)
        assert np.array_equal(mask(root), SCENE)
        assert 'without an area, not drawn: 1 box without a polygon\n' in printed
    bad = dict(size=list(SIZE), counts=[5])
    assert error_of(coco(tmp_path / 'b.json', ['a.jpg'], [(0, 'road', bad)]), root, overwrite=True) == (
        f'{tmp_path}/b.json: annotation 0: run lengths of 5 pixels: 20 x 30 = 600 are accepted'
    )


def test_pixels_outside_all_regions(tmp_path: Path, root: Path) -> None:
    shapes = [dict(label='road', points=ROAD), dict(label='__ignore__', points=CAR)]
    source = labelme(tmp_path / 'a.json', shapes)
    convert(source, root)
    assert lines(root) == ['background 0 #000000', 'road 1 #800000', 'ignore 255']
    assert np.array_equal(mask(root), np.array([0, 1, 255])[SCENE])
    (root / 'classes.txt').unlink()
    convert(source, root, unlabelled='ignore', overwrite=True)
    assert lines(root)[0] == 'road 0 #000000'
    assert np.array_equal(mask(root), np.array([255, 0, 255])[SCENE])
    assert error_of(source, root, unlabelled='road') == "unlabelled='road': 'background' and 'ignore' are accepted"


def test_a_list_of_classes_gives_the_order(tmp_path: Path, root: Path) -> None:
    listed = tmp_path / 'list.txt'
    listed.write_text('car\nroad\nBackground\nsky #0000ff\n'.replace(' #0000ff', ''))
    convert(coco_source(tmp_path), root, class_file=listed)
    assert [line.split()[0] for line in lines(root)] == ['car', 'road', 'Background', 'sky', 'ignore']
    assert np.array_equal(mask(root), np.array([2, 1, 0])[SCENE])
    other = coco(tmp_path / 'other.json', ['a.jpg'], [(0, 'bus', [flat(CAR)])], names='road,bus')
    assert error_of(other, root, overwrite=True) == (
        f"1 labels are not in {root}/classes.txt: 'bus'. It has 'car', 'road', 'Background' and 1 more"
    )
    listed.write_text('car\nroad\n')
    assert error_of(coco_source(tmp_path), root, class_file=listed, overwrite=True) == (
        f"unlabelled='background': accepted with a class background in {listed}, which has 'car', 'road'; or take "
        "'ignore'"
    )
    assert error_of(coco_source(tmp_path), root, class_file=listed, unlabelled='ignore', overwrite=True) == (
        f'{root}/classes.txt has the classes car, road, Background and 1 more, and the new masks car, road: remove the '
        'file to have a new one written'
    )


def test_images_and_annotations_that_do_not_fit(tmp_path: Path, root: Path, capsys) -> None:
    save_image(root / 'images/tall.jpg', size=SIZE[::-1])
    save_image(root / 'images/bare.jpg', size=SIZE)
    source = cvat(tmp_path / 'a.xml', dict.fromkeys(['a.jpg', 'b.jpg', 'tall.jpg', 'sub/a.jpg'], '{road}'))
    with pytest.raises(SystemExit) as exit_:
        run_tool('data/convert_masks.py', source, root)
    assert exit_.value.code == 1
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith('wrong: ')] == [
        f'wrong: {source}: b.jpg is not below {root}/images; nearest existing name: {root}/images/a.jpg',
        f'wrong: {root}/images/tall.jpg is 20 x 30 pixels, and annotated as 30 x 20 in {source}. Turn the image '
        'upright first (mogrify -auto-orient).',
        f'wrong: {source}: sub/a.jpg is annotated in {source} already',
        'wrong: 1 images have no annotation: bare.jpg. An annotation without shapes makes all of an image background',
    ]
    assert [file.name for file in (root / 'masks').iterdir()] == ['a.png']


def test_colours_and_values_by_a_list(tmp_path: Path, root: Path) -> None:
    save_mask(tmp_path / 'drawn/sub/a.png', COLOURS[SCENE])
    listed = tmp_path / 'list.txt'
    listed.write_text('car #dc143c\nroad #804080\nignore #000000\n')
    problems, printed = convert(tmp_path / 'drawn', root, class_file=listed)
    assert problems == []
    assert np.array_equal(mask(root, 'sub/a'), np.array([255, 1, 0])[SCENE])
    assert lines(root) == ['car 0 #dc143c', 'road 1 #804080', 'ignore 255']
    assert f'1 masks: 1 masks are in {root}/masks\n2 classes, in classes.txt: car, road\n' in printed
    listed.write_text('car #dc143c\nroad #804080\n')
    problems, _ = convert(tmp_path / 'drawn', root, class_file=listed, overwrite=True)
    assert problems == [
        f'mask {tmp_path}/drawn/sub/a.png has colours outside classes.txt: #000000 (340 pixels). Classes: '
        'car #dc143c, road #804080; ignored: none'
    ]
    assert error_of(tmp_path / 'drawn', root, overwrite=True) == (
        '--classes: a file with the colour of each class is needed. Masks have #000000 (340 pixels), #804080 '
        '(236 pixels), #dc143c (24 pixels)'
    )
    save_mask(tmp_path / 'drawn/sub/a.png', SCENE)
    assert error_of(tmp_path / 'drawn', root, overwrite=True) == (
        '--classes: a file with the value of each class is needed, except for masks of 0 and 255. Masks have '
        '0 (340 pixels), 1 (236 pixels), 2 (24 pixels)'
    )


def test_0_and_255(tmp_path: Path, root: Path) -> None:
    drawn = (SCENE > 0).astype(np.uint8) * 255
    save_mask(tmp_path / 'drawn/a.bmp', drawn)
    convert(tmp_path / 'drawn', root)
    assert np.array_equal(mask(root), SCENE > 0)
    assert lines(root) == ['background 0 #000000', 'foreground 1 #800000', 'ignore 255']
    save_mask(tmp_path / 'smooth/a.jpg', drawn)
    assert error_of(tmp_path / 'smooth', root, overwrite=True) == (
        f'mask {tmp_path}/smooth/a.jpg is a JPEG, which changes values: save masks as PNG, or make two classes of its '
        'grey levels with --threshold 128'
    )
    listed = tmp_path / 'list.txt'
    listed.write_text('wall\ncrack\n')
    (root / 'classes.txt').unlink()
    convert(tmp_path / 'smooth', root, threshold=128, class_file=listed, overwrite=True)
    assert np.array_equal(mask(root), SCENE > 0)
    assert lines(root)[1] == 'crack 1 #800000'
    assert error_of(tmp_path / 'smooth', root, threshold=0, overwrite=True).startswith(
        'threshold=0: 1 to 255 is accept'
    )


def test_nothing_is_overwritten_unasked(tmp_path: Path, root: Path) -> None:
    save_mask(root / 'masks/a.png', SCENE)
    assert error_of(coco_source(tmp_path), root) == (
        f'{root}/masks has files already: remove them, or replace those of the same names with --overwrite'
    )
    assert error_of(root / 'masks', root, overwrite=True) == (
        f"source='{root}/masks': a folder other than that of the new masks is accepted. Rename it, for example to "
        f'{root}/masks_before'
    )


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.json', '{"shapes": [', 'is not JSON: '),
        ('a.json', '{"shapes": [{"label": "x"}]}', "is not a whole file of labelme: KeyError 'points'"),
        ('a.json', '{"images": [], "captions": []}', 'has images, captions: "shapes", as labelme writes, or "images"'),
        ('a.json', '[1]', 'has list: "shapes", as labelme writes'),
        ('a.xml', '<annotations>', 'is not XML: '),
        ('a.xml', '<annotation/>', 'has the root <annotation>: <annotations>, "CVAT for images 1.1", is accepted'),
        ('a.xml', '<annotations><track/></annotations>', 'has tracks of a video: export the task as "CVAT for images'),
        (
            'a.txt',
            '0 0.5 0.5',
            '.json of labelme or COCO, .xml of CVAT or a folder of masks is accepted, and it has 1 .txt',
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, root: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    error = error_of(tmp_path / name, root)
    assert str(tmp_path / name) in error
    assert message in error


def test_what_coco_contradicts(tmp_path: Path, root: Path) -> None:
    source = coco(tmp_path / 'a.json', ['a.jpg'], [(1, 'road', [flat(ROAD)])])
    assert error_of(source, root) == f'{source}: annotation 0 is of image 101, which the file does not have'
    source = coco(tmp_path / 'a.json', ['a.jpg'], [], names='road,road')
    assert error_of(source, root) == f"{source}: category 'road' occurs more than once"
    labelme(tmp_path / 'both/b.json')
    coco(tmp_path / 'both/a.json', ['a.jpg'], [])
    assert error_of(tmp_path / 'both', root) == (
        f'{tmp_path}/both/b.json is of labelme, and {tmp_path}/both/a.json of COCO: convert one kind at a time'
    )
    assert error_of(tmp_path / 'bot', root).endswith(f'bot does not exist; nearest existing name: {tmp_path}/both')
