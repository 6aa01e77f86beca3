"""A recipe's model without weights, the shapes of its inputs, and its census, before anything is loaded."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from ...surgery.census import Census, census
from ...surgery.trace import trace
from .tree import dicts_in, hooks_in

STEPWISE_HOOK = 'StepStatisticsHook'

SIDE = 112
"""Height and width of clips where the recipe does not give them."""


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """Build the model of a recipe; on the meta device, the default, it takes no memory and little time."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), torch.device(device):
        return MODELS.build(copy.deepcopy(cfg.model))  # hosts write into the config that they are built from


def input_shape(cfg: Config, batch_size: int | None = None) -> tuple[int, ...]:
    """Return the shape of a recipe's training batch: (N, 3, H, W) for images, (N, 1, 3, T, H, W) for clips.

    Clips that the recipe leaves at the size of their files count as `SIDE` pixels high and wide.

    Args:
        cfg: A recipe.
        batch_size: N; by default that of the training loader.

    Raises:
        ValueError: If the recipe does not give the size.
    """
    loader = cfg.get('train_dataloader') or {}
    batch_size = batch_size or loader.get('batch_size', 1)
    steps: list[dict[str, Any]] = next(
        (node['pipeline'] for node in dicts_in(loader.get('dataset')) if 'pipeline' in node), []
    )
    sizes = [step[key] for step in steps for key in ('crop_size', 'size') if step.get(key)]
    sizes += [node['size'] for node in [cfg.model.get('data_preprocessor') or {}] if node.get('size')]
    frames = [frames_of(step['sampler']) for step in steps if isinstance(step.get('sampler'), dict)]
    clips = cfg.model.get('type') == 'Recognizer3d'
    if not sizes and clips:
        sizes = [SIDE]
    if not sizes or (clips and not frames):
        raise ValueError('the recipe does not give the size of its inputs: set --input-shape')
    height, width = (sizes[-1], sizes[-1]) if isinstance(sizes[-1], int) else sizes[-1]
    return (batch_size, 1, 3, frames[0], height, width) if clips else (batch_size, 3, height, width)


def frames_of(sampler: dict[str, Any]) -> int:
    """Return the number of frames of a clip: its length if dense, the number of segments if sparse."""
    return sampler['clip_len'] if 'clip_len' in sampler else sampler['num_segments']


def evaluation_shape(cfg: Config, part: str) -> tuple[int, ...]:
    """Return the shape of a `val` or `test` batch: (N, 3, H, W), or (N, V, 3, T, H, W) for clips of V views.

    Images count as large as the box they are resized to, and as large as in training if they are not resized. With
    test-time augmentation the largest copy counts.
    """
    loader = cfg.get(f'{part}_dataloader') or {}
    training = input_shape(cfg)
    steps = pipeline_of(cfg, part)
    samples = loader.get('batch_size', 1)
    if cfg.model.get('type') != 'Recognizer3d':
        return samples, 3, *max(image_sizes(steps, training[2:]), key=math.prod)
    samplers = [step['sampler'] for step in steps if isinstance(step.get('sampler'), dict)]
    clips = samplers[0].get('num_clips', 1) if samplers else 1
    crops = 3 if any(step.get('type') == 'ThreeCropClip' for step in steps) else 1
    sizes = [step['size'] for step in steps if step.get('size')] or [training[-2:]]
    height, width = (sizes[-1], sizes[-1]) if isinstance(sizes[-1], int) else sizes[-1]
    return samples, clips * crops, 3, training[3], height, width


def pipeline_of(cfg: Config, part: str) -> list[dict[str, Any]]:
    """Return the pipeline of a recipe's `train`, `val` or `test` data."""
    loader = cfg.get(f'{part}_dataloader') or {}
    return next((node['pipeline'] for node in dicts_in(loader.get('dataset')) if 'pipeline' in node), [])


def image_sizes(steps: Sequence[dict[str, Any]], otherwise: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return (H, W) after an evaluation pipeline, one for each copy of a test-time augmentation."""
    augmented = next((step['transforms'] for step in steps if step['type'] == 'TestTimeAug'), None)
    if augmented is not None:
        return [size for chosen in product(*augmented) for size in image_sizes(chosen, otherwise)]
    height, width = otherwise
    for step in steps:
        factor = step.get('scale_factor')
        if isinstance(step.get('scale'), (tuple, list)):
            width, height = step['scale']
        elif isinstance(factor, float):
            height, width = round(height * factor), round(width * factor)
    return [(height, width)]


def copies_of_test(cfg: Config) -> tuple[dict[str, Any], list[tuple[int, int]]] | None:
    """Return the config of the model that averages over copies of an image, and (H, W) of each; None without them."""
    averaging = next((dict(hook['tta_cfg']) for hook in hooks_in(cfg) if hook.get('type') == 'PrepareTTAHook'), None)
    return None if averaging is None else (averaging, image_sizes(pipeline_of(cfg, 'test'), input_shape(cfg)[2:]))


def run_all_parts(model: nn.Module, shape: Sequence[int]) -> Callable[[], object]:
    """Return a function that runs a model on zeros of a shape, with the heads that only training uses."""
    device = next(model.parameters()).device

    def run() -> object:
        inputs = torch.zeros(*shape, device=device)
        outputs = [model(inputs)]
        heads = getattr(model, 'auxiliary_head', None)
        for head in heads if isinstance(heads, nn.ModuleList) else [heads] if heads is not None else []:
            outputs.append(head(model.extract_feat(inputs)))
        return outputs

    return run


def census_of_recipe(
    cfg: Config, checkpoint: str | None = None, *, shape: Sequence[int] | None = None, devices: int = 1
) -> tuple[Census, tuple[int, ...]]:
    """Build a recipe's model, run it once and take its census.

    Args:
        cfg: A recipe.
        checkpoint: File with every weight and statistic of the model. Without it, nothing is computed.
        shape: Input shape; by default the recipe's, with its batch per device.
        devices: Number of processes that train together.

    Returns:
        The census, and the shape of the input.
    """
    shape = tuple(shape or input_shape(cfg))
    model = build_model(cfg)
    seen = trace(model, run_all_parts(model, shape))
    if checkpoint is not None:
        model = build_model(cfg, 'cpu')
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    wrapper = cfg.get('optim_wrapper') or {}
    param_groups = []
    if wrapper:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            param_groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    return census(
        model,
        seen,
        param_groups=param_groups,
        accumulation=wrapper.get('accumulative_counts', 1),
        ranks=devices,
        stepwise=any(hook.get('type') == STEPWISE_HOOK for hook in hooks_in(cfg)),
    ), shape
