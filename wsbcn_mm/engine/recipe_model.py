"""A recipe's model without its weights: to look at its layers before anything is loaded."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from .config_tree import dicts_in

SIDE = 112
"""Height and width of clips whose recipe does not say."""


def build_model(cfg: Config, device: str = 'meta') -> nn.Module:
    """Build the model of a recipe; on the meta device, the default, this takes no memory and next to no time."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), torch.device(device):
        return MODELS.build(cfg.model)


def input_shape(cfg: Config, batch_size: int | None = None) -> tuple[int, ...]:
    """Shape of what a recipe's model receives in training: (N, 3, H, W), or (N, 1, 3, T, H, W) of clips.

    Clips that the recipe leaves at the size of their files are taken to be of `SIDE` pixels.

    Args:
        cfg: A recipe.
        batch_size: N; by default that of the training loader.

    Raises:
        ValueError: If the recipe does not say.
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
        raise ValueError('the recipe does not say the size of its inputs: give it with --input-shape')
    height, width = (sizes[-1], sizes[-1]) if isinstance(sizes[-1], int) else sizes[-1]
    return (batch_size, 1, 3, frames[0], height, width) if clips else (batch_size, 3, height, width)


def frames_of(sampler: dict[str, Any]) -> int:
    """Frames of a clip: of a dense sampler, or one of each segment."""
    return sampler['clip_len'] if 'clip_len' in sampler else sampler['num_segments']


def run_all_parts(model: nn.Module, shape: Sequence[int]) -> Callable[[], object]:
    """A function that runs a model on zeros of a shape, on its device, with the heads that only training uses."""
    device = next(model.parameters()).device

    def run() -> object:
        inputs = torch.zeros(*shape, device=device)
        outputs = [model(inputs)]
        heads = getattr(model, 'auxiliary_head', None)
        for head in heads if isinstance(heads, nn.ModuleList) else [heads] if heads is not None else []:
            outputs.append(head(model.extract_feat(inputs)))
        return outputs

    return run
