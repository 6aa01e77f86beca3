"""Mixed precision: bfloat16 where the device supports it, else float16 with filters whose outputs stay in its range."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import autocast
from torch import Tensor, nn

from .tree import PRETRAINED

PRECISIONS = ('bf16', 'fp16')
SCALING = ('loss_scale', 'dtype', 'use_fsdp')
"""Arguments of AmpOptimWrapper that Bf16OptimWrapper does not have."""


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper with forward passes in bfloat16 autocast, on GPUs and CPUs.

    bfloat16 has the range of float32, so losses need no scaling. mmengine's AmpOptimWrapper always scales them, and
    rejects CPUs.

    On a CPU, models with 3D convolutions run backward without oneDNN, which is slower. With oneDNN, parts of the
    bfloat16 gradient of a 3D filter stay uninitialised (torch 2.14, an x86 CPU with AVX512-BF16, two frames).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._has_conv3d = False

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        self._has_conv3d = any(isinstance(module, nn.Conv3d) for module in model.modules())
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        onednn: Any = torch.backends.mkldnn
        enabled = onednn.enabled
        onednn.enabled = enabled and not (loss.is_cpu and self._has_conv3d)
        try:
            super().backward(loss, **kwargs)
        finally:
            onednn.enabled = enabled


def use_amp(cfg: Config, precision: str | None = None) -> list[str]:
    """Make a recipe train in automatic mixed precision.

    In float16, WS convolutions get `gain='fan_in'`. Parts that start from a file do not: their norms and the layers
    after them were trained without it.

    Args:
        cfg: A recipe. Changed in place; a resumed run gets what its first part got.
        precision: 'bf16' or 'fp16'; None for bfloat16 where the device supports it, else float16.

    Returns:
        The changes, one per line.

    Raises:
        ValueError: For an unknown precision, one that the device does not support, or an optimizer wrapper without a
            mixed-precision form.
    """
    if precision not in (None, *PRECISIONS):
        raise ValueError(f'--amp {precision!r}: {" or ".join(PRECISIONS)} is expected')
    on_gpu = torch.cuda.is_available()
    has_bf16 = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == 'fp16' and not on_gpu:
        raise ValueError('--amp fp16: a GPU is needed, and none was found; --amp bf16 also runs on CPUs')
    if precision == 'bf16' and not has_bf16:
        raise ValueError(f'--amp bf16: {torch.cuda.get_device_name()} does not support it; use --amp fp16')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'Bf16OptimWrapper'):
        raise ValueError(f"--amp with optim_wrapper.type={kind!r}: 'OptimWrapper' is expected")
    if precision is None and kind != 'OptimWrapper':
        return [f'amp: the recipe already sets {kind}']
    if (precision or ('bf16' if has_bf16 else 'fp16')) == 'bf16':
        for key in SCALING:
            cfg.optim_wrapper.pop(key, None)
        cfg.optim_wrapper.type = 'Bf16OptimWrapper'
        return ['amp: forward passes in bfloat16, losses not scaled']
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.dtype = 'float16'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    gained, left = give_fan_in_gain(cfg)
    scale = cfg.optim_wrapper.loss_scale
    return [
        f'amp: forward passes in float16, loss scale {scale}',
        *([f"amp: gain='fan_in' for the WS convolutions of {', '.join(gained)}"] if gained else []),
        *([f'amp: no gain for those of {", ".join(left)}, which start from a file trained without it'] if left else []),
    ]


def give_fan_in_gain(cfg: Config) -> tuple[list[str], list[str]]:
    """Set `gain='fan_in'` in every conv_cfg of WS that sets no gain, except in parts that start from a file.

    Returns:
        Config paths of the parts that have the gain, and of those that start from a file.
    """
    gained: list[str] = []
    left: list[str] = []
    whole = bool(cfg.get('load_from')) and not cfg.get('resume')
    for path, part, from_file in parts_with_ws(cfg.model, whole):
        conv = part['conv_cfg']
        if 'gain' not in conv and not from_file:
            part['conv_cfg'] = {**conv, 'gain': 'fan_in'}
        (left if part['conv_cfg'].get('gain') is None else gained).append(path)
    return gained, left


def parts_with_ws(node: Any, from_file: bool, path: str = 'model') -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield path and dict of every part of a model's config whose conv_cfg is WS, and whether it starts from a file."""
    if isinstance(node, dict):
        init = node.get('init_cfg') or []
        inits = [init] if isinstance(init, dict) else init
        from_file = from_file or any(one.get('type') in PRETRAINED for one in inits)
        conv = node.get('conv_cfg')
        if isinstance(conv, dict) and str(conv.get('type')).startswith('WSConv'):
            yield path, node, from_file
        for key, child in node.items():
            yield from parts_with_ws(child, from_file, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from parts_with_ws(child, from_file, f'{path}.{i}')
