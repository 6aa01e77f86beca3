"""tools/fold.py on a segmentation recipe, and its errors for others."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.apis import init_model
from mmseg.registry import MODELS

import wsbcn_mm.segmentation  # noqa: F401
from tests.tools.tiny_runs import options, recipe, run_tool
from wsbcn_mm.surgery.fingerprint import fingerprint
from wsbcn_mm.surgery.kinds import count_norms

STOCK_HEAD = ['model.decode_head.bottleneck_kernel_size=3', 'model.decode_head.image_pool_norm=True']


CLASSES = ('background', 'digit 0', 'digit 1', 'digit 4')


def checkpoint(file, classes):
    """Write random weights whose metadata has these classes."""
    cfg = Config.fromfile(recipe('segmentation'))
    cfg.model.decode_head.update(bottleneck_kernel_size=3, image_pool_norm=True)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    meta = {'fingerprint': fingerprint(model), 'dataset_meta': {'classes': classes}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, file)


def test_a_checkpoint_becomes_files_for_mmseg(tmp_path, capsys, monkeypatch):
    checkpoint(tmp_path / 'trained.pth', CLASSES)
    run_tool(
        *('fold.py', recipe('segmentation'), tmp_path / 'trained.pth', '--work-dir', tmp_path / 'work'),
        *options('segmentation', tmp_path, 2, *STOCK_HEAD),
    )
    printed = capsys.readouterr().out
    assert 'folded: 25 WS convolutions baked, 25 BCN absorbed by their convolution, 0 BCN kept' in printed
    folder = tmp_path / 'work' / 'folded'
    assert printed.rstrip().endswith(
        f'{folder / "folded.pth"}, {folder / "folded.py"}, {folder / "folded_segmentor.py"}'
    )
    monkeypatch.syspath_prepend(folder)
    folded = init_model(folder / 'folded.py', str(folder / 'folded.pth'), device='cpu')
    assert count_norms(folded) == {'GN': 25}
    assert folded.dataset_meta == {'classes': CLASSES}


def test_a_checkpoint_of_other_classes_is_refused_without_the_data(tmp_path):
    checkpoint(tmp_path / 'trained.pth', CLASSES[::-1])
    with pytest.raises(
        ValueError,
        match=r'^the checkpoint was trained with another class list \(4 classes, sha256 .*\) than the data have '
        r"\(4 classes, sha256 .*\): class 0 is 'digit 4' in the checkpoint and 'background' in the data\. If this is",
    ):
        run_tool(
            *('fold.py', recipe('segmentation'), tmp_path / 'trained.pth', '--work-dir', tmp_path / 'work'),
            *options('segmentation', tmp_path, 2, *STOCK_HEAD),
        )
    assert not (tmp_path / 'work' / 'folded').exists()


def test_a_video_recipe_is_sent_to_the_other_tool(tmp_path):
    (tmp_path / 'trained.pth').touch()
    with pytest.raises(
        ValueError, match=r': a segmentation recipe is expected, because the files are for mmseg; tools/export\.py '
    ):
        run_tool('fold.py', recipe('video'), tmp_path / 'trained.pth', '--work-dir', tmp_path / 'work')
    assert not (tmp_path / 'work').exists()
