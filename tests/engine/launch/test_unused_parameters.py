"""Recipes have no trainable parameters without a gradient; a model that has some is rejected with their names."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict

from wsbcn_mm.engine.launch.unused_parameters import refuse_unused_parameters, unused_parameters
from wsbcn_mm.engine.recipe.load import load_recipe

CONFIGS = Path(__file__).parents[3] / 'configs'
TINY = 'tiny/deeplabv3_r18-tiny_bcn-ws_1xb1-acc1-2.4k_digits-64x64.py'
STAGE_3 = dict(in_index=2, in_channels=64)
"""A head that reads the third stage, which leaves the fourth unused."""
REFUSED = (
    '15 trainable parameters receive no gradient from the loss: backbone.layer4.0.conv1.weight, '
    'backbone.layer4.0.bn1.weight, backbone.layer4.0.bn1.bias, backbone.layer4.0.conv2.weight, '
    'backbone.layer4.0.bn2.weight, backbone.layer4.0.bn2.bias, backbone.layer4.0.downsample.0.weight, '
    'backbone.layer4.0.downsample.1.weight, backbone.layer4.0.downsample.1.bias, backbone.layer4.1.conv1.weight '
    'and 5 more. DistributedDataParallel would wait for their gradients and stop in the second step. Remove them from '
    'the model, freeze them (requires_grad=False), or let each step search for them, which costs time: '
    '--cfg-options find_unused_parameters=True'
)


@pytest.fixture
def recipe():
    """A small recipe of BN whose fourth stage is unused, for two processes."""
    cfg = load_recipe(str(CONFIGS / TINY.replace('bcn-ws', 'bn')))
    cfg.train_dataloader.batch_size = 2
    cfg.model.decode_head |= ConfigDict(STAGE_3)
    cfg.launcher = 'pytorch'
    return cfg


@pytest.mark.parametrize(
    'name',
    [
        TINY,
        'deeplabv3/deeplabv3_r101-d16-mg124_syncbn_8xb2-acc1-33k_voc12aug-513x513.py',
        'deeplabv3/deeplabv3_r101-d16_bcnsync-ws_8xb2-acc1-33k_voc12aug-513x513.py',
        'deeplabv3plus/deeplabv3plus_r50-d8_gn-ws_1xb1-acc8-80k_cityscapes-512x1024.py',
        'resnet3d/r3d-50_bcn-ws_1xb1-acc64-188k_kinetics400-16x4x1-112x112.py',
        'resnet3d/r2plus1d-18_bn_8xb2-acc4-188k_kinetics400-16x4x1-112x112.py',
        'resnet3d/slowonly-r50_bcn-ws_1xb1-acc64-132k_sthv2-8seg-224x224.py',
    ],
)
def test_recipes_use_all_trainable_parameters(name):
    assert unused_parameters(load_recipe(str(CONFIGS / name))) == []


def test_parameters_without_a_gradient_are_rejected_by_name_and_random_states_are_kept(recipe):
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=f'^{re.escape(REFUSED)}$'):
        refuse_unused_parameters(recipe)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    'change',
    [
        dict(launcher='none'),
        dict(find_unused_parameters=True),
        dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', find_unused_parameters=True)),
        dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', static_graph=True)),
        dict(model_wrapper_cfg=dict(type='FullyShard')),
    ],
)
def test_configs_that_work_are_accepted(change, recipe):
    recipe.update(change)
    refuse_unused_parameters(recipe)


def test_frozen_stages_need_no_gradient(recipe):
    recipe.model.backbone.frozen_stages = 4
    assert unused_parameters(recipe) == []
    video = load_recipe(str(CONFIGS / 'tiny/r3d-18-tiny_bcn-ws_1xb1-acc1-2.4k_motion-8x40x40.py'))
    video.model.backbone.frozen_stages = 2
    assert unused_parameters(video) == []


def test_a_model_that_cannot_be_checked_is_logged_and_trains(recipe, capsys):
    recipe.model.data_preprocessor.pop('size')
    recipe.train_dataloader.dataset.pipeline = []
    refuse_unused_parameters(recipe)
    assert capsys.readouterr().out == (
        'the model was not checked for parameters without a gradient: ValueError: the recipe does not give the size of '
        'its inputs: set --input-shape\n'
    )
