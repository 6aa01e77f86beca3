from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from PIL import Image

from wsbcn_mm.engine.data.sheets import GAP
from wsbcn_mm.segmentation import OverlayHook
from wsbcn_mm.segmentation.evaluation.overlays import side_by_side

PALETTE = [[128, 64, 128], [0, 0, 142]]


def data_sample(folder: Path, name: str, with_label: bool = True) -> SegDataSample:
    rng = np.random.default_rng(len(name))
    Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).save(folder / f'{name}.png')
    label = torch.zeros(1, 6, 9, dtype=torch.int64)
    label[:, :, 4:] = 1
    label[:, 0, 0] = 255
    sample = SegDataSample(metainfo=dict(img_path=str(folder / f'{name}.png')))
    if with_label:
        sample.gt_sem_seg = PixelData(data=label)
    sample.pred_sem_seg = PixelData(data=torch.ones_like(label))
    return sample


@pytest.fixture
def runner(tmp_path: Path) -> SimpleNamespace:
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(palette=PALETTE)))
    return SimpleNamespace(work_dir=tmp_path / 'run', iter=40, test_dataloader=loader, val_dataloader=loader)


def test_png_holds_image_truth_and_prediction_in_the_palette(tmp_path: Path, runner: SimpleNamespace) -> None:
    hook = HOOKS.build(dict(type='OverlayHook'))
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, outputs=[data_sample(tmp_path, 'street')])
    file = runner.work_dir / 'overlays' / '0000_street.png'
    with Image.open(file) as picture:
        assert picture.format == 'PNG'
        assert picture.mode == 'RGB'
        pixels = np.asarray(picture)
    assert pixels.shape == (6, 3 * 9 + 2 * GAP, 3)
    image, truth, prediction = pixels[:, :9], pixels[:, 9 + GAP : 18 + GAP], pixels[:, 18 + 2 * GAP :]
    np.testing.assert_array_equal(image, np.asarray(Image.open(tmp_path / 'street.png')))
    assert truth[0, 0].tolist() == [255, 255, 255]
    assert truth[5, 0].tolist() == PALETTE[0]
    assert truth[5, 8].tolist() == PALETTE[1]
    assert np.all(prediction == PALETTE[1])


def test_number_of_images_is_kept_over_batches_and_starts_again(tmp_path: Path, runner: SimpleNamespace) -> None:
    hook = OverlayHook(out_dir=tmp_path / 'pictures', max_images=3)
    for _ in range(2):
        hook.before_test(runner)
        for batch in range(3):
            samples = [data_sample(tmp_path, f'{batch}{i}') for i in 'ab']
            hook.after_test_iter(runner, batch, outputs=samples)
        names = sorted(file.name for file in (tmp_path / 'pictures').iterdir())
        assert names == ['0000_0a.png', '0001_0b.png', '0002_1a.png']


def test_validation_goes_to_a_folder_of_its_iteration(tmp_path: Path, runner: SimpleNamespace) -> None:
    hook = OverlayHook(max_images=1)
    hook.before_val(runner)
    hook.after_val_iter(runner, 0, outputs=[data_sample(tmp_path, 'a')])
    assert (runner.work_dir / 'overlays' / 'iter_40' / '0000_a.png').is_file()


def test_image_without_ground_truth_has_two_panels(tmp_path: Path, runner: SimpleNamespace) -> None:
    hook = OverlayHook()
    hook.after_test_iter(runner, 0, outputs=[data_sample(tmp_path, 'a', with_label=False)])
    with Image.open(runner.work_dir / 'overlays' / '0000_a.png') as picture:
        assert picture.size == (2 * 9 + GAP, 6)


def test_opacity_mixes_colour_and_image() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    row = side_by_side(image, [np.zeros((2, 2), int)], [[200, 0, 100]], opacity=0.5)
    assert row[0, -1].tolist() == [150, 50, 100]


def test_floats_of_a_model_with_one_output_are_drawn() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    row = side_by_side(image, [np.array([[0.0, 1.0]], np.float32)], PALETTE[:2])
    assert row[0, -2:].tolist() == [list(colour) for colour in PALETTE[:2]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r'opacity=1.5: a number from 0 to 1 is expected'):
        OverlayHook(opacity=1.5)
    with pytest.raises(ValueError, match=r'max_images=-1: a number >= 0 is expected'):
        OverlayHook(max_images=-1)
    with pytest.raises(ValueError, match=r'label map of shape \(3, 2\): shape \(2, 2\) of the image is expected'):
        side_by_side(np.zeros((2, 2, 3), np.uint8), [np.zeros((3, 2), int)], PALETTE)
