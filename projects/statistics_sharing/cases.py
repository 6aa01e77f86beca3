"""Models of the recipes, with statistics shared in different ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from projects.statistics_sharing.sync_batch_norm import synchronize
from wsbcn_mm.engine.memory.plan import batch_of
from wsbcn_mm.engine.recipe.load import load_recipe
from wsbcn_mm.engine.recipe.model import build_model
from wsbcn_mm.engine.recipe.norms import switch_norm
from wsbcn_mm.engine.recipe.tree import dicts_in
from wsbcn_mm.microbatch import StepStatistics

CONFIGS = Path(__file__).parents[2] / 'configs'


class Case(NamedTuple):
    """A model and the shapes of one rank's input."""

    name: str
    recipe: str
    """Recipe of BCN + WS."""
    counted: tuple[int, ...]
    """Shape for counting messages, which do not depend on it."""
    timed: tuple[int, ...] | None = None
    """Shape for timing; None to count only."""


SEGMENTATION = 'deeplabv3/deeplabv3_{}-d16_bcn-ws_1xb1-acc16-33k_voc12aug-513x513'
VIDEO = 'resnet3d/r3d-{}_bcn-ws_1xb1-acc64-188k_kinetics400-16x4x1-112x112'
IMAGE, SMALL_IMAGE = (1, 3, 321, 321), (1, 3, 65, 65)
CLIP, SMALL_CLIP = (1, 1, 3, 8, 56, 56), (1, 1, 3, 8, 40, 40)
CASES = (
    Case('DeepLabV3-R50', SEGMENTATION.format('r50'), SMALL_IMAGE, timed=IMAGE),
    Case('R3D-18', VIDEO.format(18), SMALL_CLIP, timed=CLIP),
    Case('R3D-50', VIDEO.format(50), SMALL_CLIP, timed=CLIP),
    Case('DeepLabV3-R101', SEGMENTATION.format('r101'), SMALL_IMAGE),
)
QUICK_CASES = (Case('tiny R3D', 'tiny/r3d-18-tiny_bcn-ws_1xb1-acc1-2.4k_motion-8x40x40', SMALL_CLIP, timed=SMALL_CLIP),)

SIDES = {
    'bn': 'BN, each rank its own',
    'bn-sync': 'BN, synchronised in every pass',
    'bcn': 'BCN, estimates shared after the step',
    'bcn-ws': 'BCN + WS, estimates shared after the step',
    'bcn-ws-sync': 'BCN + WS, synchronised in every pass',
}


class Step(NamedTuple):
    """A training step of one rank: `shared` averages gradients through DistributedDataParallel, `alone` does not."""

    shared: Callable[[], object]
    alone: Callable[[], object]


def training_step(case: Case, side: str, shape: tuple[int, ...]) -> Step:
    """Return forward, backward, SGD with momentum, and the commit of BCN's statistics, on one random sample.

    The learning rate is small, so that the weights hardly change while the step is repeated.
    """
    cfg = load_recipe(str(CONFIGS / f'{case.recipe}.py'))
    if side.startswith('bn'):
        switch_norm(cfg, 'bn', CONFIGS / '_base_' / 'norms')
    for node in dicts_in(cfg.model):
        if node.get('type') == 'BCN' and side == 'bcn-ws-sync':
            node['statistics'] = 'sync'
        if side == 'bcn' and str(node.get('type')).startswith('WSConv'):
            node['type'] = node['type'].removeprefix('WS')
    if 'decode_head' in cfg.model:
        cfg.model.decode_head.image_pool_norm = False  # BN alone is undefined there at one sample
        if shape == SMALL_IMAGE:
            cfg.model.decode_head.dilations = (1, 1, 1, 1)  # dilations beyond the map take minutes on a CPU
    torch.manual_seed(0)
    model: nn.Module = build_model(cfg, 'cpu').train()
    if side == 'bn-sync':
        synchronize(model)
    data = model.data_preprocessor(batch_of(shape), training=True)
    data['inputs'] = torch.randn(data['inputs'].shape)
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4))
    statistics = StepStatistics(model)

    def step(caller: nn.Module) -> None:
        loss, _ = model.parse_losses(caller(**data, mode='loss'))
        optimizer.update_params(loss)
        statistics.commit()

    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    return Step(lambda: step(wrapped), lambda: step(model))
