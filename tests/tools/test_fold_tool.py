"""tools/fold.py on a segmentation recipe, and its refusal of others."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.apis import init_model
from mmseg.registry import MODELS
from tiny_runs import options, recipe, run_tool

import wsbcn_mm.segmentation  # noqa: F401
from wsbcn_mm.surgery.fingerprint import fingerprint
from wsbcn_mm.surgery.kinds import count_norms

STOCK_HEAD = ['model.decode_head.bottleneck_kernel_size=3', 'model.decode_head.image_pool_norm=True']


def test_a_checkpoint_becomes_files_for_mmseg(tmp_path, capsys, monkeypatch):
    cfg = Config.fromfile(recipe('segmentation'))
    cfg.model.decode_head.update(bottleneck_kernel_size=3, image_pool_norm=True)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    meta = {'fingerprint': fingerprint(model), 'dataset_meta': {'classes': tuple('abcd')}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, tmp_path / 'trained.pth')
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
    assert folded.dataset_meta == {'classes': tuple('abcd')}


def test_a_video_recipe_is_sent_to_the_other_tool(tmp_path):
    (tmp_path / 'trained.pth').touch()
    with pytest.raises(
        ValueError, match=r' is no segmentation recipe: only mmseg has models to fold for, tools/export'
    ):
        run_tool('fold.py', recipe('video'), tmp_path / 'trained.pth', '--work-dir', tmp_path / 'work')
    assert not (tmp_path / 'work').exists()
