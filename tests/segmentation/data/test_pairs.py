"""Images and labels that do not match, and the paths that the errors name."""

from pathlib import Path

import pytest

from wsbcn_mm.segmentation.data.pairs import pair_by_list, pair_by_stem


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder, suffix in (('images', '.jpg'), ('labels', '_label.png')):
        for city in ('aachen', 'bochum'):
            (tmp_path / folder / city).mkdir(parents=True)
            for number in (2, 1):
                (tmp_path / folder / city / f'{city}{number}{suffix}').touch()
    (tmp_path / 'list.txt').write_text('aachen1\naachen2\n')
    return tmp_path


def by_stem(tree: Path, label_suffix: str = '_label.png', image_suffix: str = '.jpg') -> list:
    return pair_by_stem(tree / 'images', image_suffix, tree / 'labels', label_suffix)


def by_list(tree: Path, name: str = 'list.txt', suffix: str = '.jpg') -> list:
    return pair_by_list(tree / name, tree / 'images/aachen', suffix, tree / 'labels/aachen', '_label.png')


def test_pairs_in_order(tree: Path) -> None:
    (tree / 'images/aachen/._aachen1.jpg').touch()
    pairs = by_stem(tree)
    assert [image.name for image, _ in pairs] == ['aachen1.jpg', 'aachen2.jpg', 'bochum1.jpg', 'bochum2.jpg']
    assert [label.name[:-10] for _, label in pairs] == ['aachen1', 'aachen2', 'bochum1', 'bochum2']
    assert by_list(tree) == pairs[:2]
    assert pair_by_stem(tree / 'images', '.jpg')[0] == (tree / 'images/aachen/aachen1.jpg', None)


def test_labels_of_another_suffix(tree: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        by_stem(tree, '_labelIds.png')
    labels = tree / 'labels'
    assert str(error.value) == (
        f'found 4 images with suffix .jpg under {tree}/images, 0 labels with suffix _labelIds.png under {labels}; '
        f'missing: {labels}/aachen/aachen1_labelIds.png, {labels}/aachen/aachen2_labelIds.png, '
        f'{labels}/bochum/bochum1_labelIds.png and 1 more; nearest existing name: {labels}/aachen/aachen1_label.png'
    )


def test_no_images(tree: Path) -> None:
    (tree / 'images/.DS_Store').touch()
    with pytest.raises(FileNotFoundError) as error:
        by_stem(tree, image_suffix='.png')
    assert str(error.value) == (
        f'found 0 images with suffix .png under {tree}/images; nearest existing name: {tree}/images/aachen/aachen1.jpg'
    )


def test_unequal_pairs(tree: Path) -> None:
    (tree / 'images/bochum/bochum2.jpg').unlink()
    with pytest.raises(ValueError, match=r'^found 3 images .*, 4 labels .*; labels without an image: .*/bochum2_label'):
        by_stem(tree)
    (tree / 'labels/bochum/bochum1_label.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'^found 3 images .*, 3 labels .*; missing: .*/bochum1_label.png; '):
        by_stem(tree)


def test_two_images_of_one_name(tree: Path) -> None:
    (tree / 'images/bochum/aachen1.jpg').touch()
    with pytest.raises(ValueError, match=r"named 'aachen1'") as error:
        by_stem(tree)
    folder = tree / 'images'
    assert str(error.value) == f"2 images are named 'aachen1': {folder}/aachen/aachen1.jpg, {folder}/bochum/aachen1.jpg"


def test_a_folder_that_does_not_exist(tree: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        pair_by_stem(tree / 'image' / 'aachen', '.jpg')
    assert str(error.value) == f'{tree}/image/aachen does not exist; nearest existing name: {tree}/images'


def test_lists(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf'^{tree}/lists.txt does not exist; nearest existing .*/list.txt$'):
        by_list(tree, 'lists.txt')
    with pytest.raises(FileNotFoundError) as error:
        by_list(tree, suffix='.png')
    folder = tree / 'images/aachen'
    assert str(error.value) == (
        f'{tree}/list.txt has 2 names, {folder} has files for 0 of them; missing: {folder}/aachen1.png, '
        f'{folder}/aachen2.png; nearest existing name: {folder}/aachen1.jpg'
    )
    (tree / 'list.txt').write_text('aachen1\naachen1\naachen2\n')
    with pytest.raises(ValueError, match=r'list.txt has names more than once: aachen1$'):
        by_list(tree)
    (tree / 'list.txt').write_text('\n')
    with pytest.raises(ValueError, match=r'list.txt has no names$'):
        by_list(tree)
