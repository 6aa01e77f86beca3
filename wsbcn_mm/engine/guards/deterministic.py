"""Bit-equal repeated runs: what mmengine's `randomness.deterministic` does not cover."""

import os
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.overrides import TorchFunctionMode

from ...ops.bilinear_upsample import bilinear_upsample
from ..runner import unwrapped_model


@HOOKS.register_module()
class DeterministicHook(Hook):
    """Under `randomness=dict(deterministic=True)`, interpolate with `bilinear_upsample` inside the model's forward.

    mmengine asks torch and cuDNN for deterministic algorithms. cuBLAS also needs an environment variable, which this
    hook sets. mmseg's heads call `F.interpolate` in many places that no config reaches: every bilinear call with a
    given size is replaced while the model runs, and only then. Other operations without a deterministic form raise
    torch's own RuntimeError.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._attached = False

    def before_run(self, runner: Runner) -> None:
        if not torch.are_deterministic_algorithms_enabled():
            return
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        if not self._attached:
            interpolate_deterministically(unwrapped_model(runner))
            self._attached = True
            runner.logger.info('deterministic: bilinear interpolation goes backward by matrix products')


class DeterministicInterpolation(TorchFunctionMode):
    """Replace `F.interpolate` of maps to a given size in mode 'bilinear' by `bilinear_upsample`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.interpolate and kwargs['mode'] == 'bilinear' and kwargs['size'] and not kwargs['antialias']:
            size = kwargs['size']
            size = (size, size) if isinstance(size, int) else size
            return bilinear_upsample(args[0], size, align_corners=bool(kwargs['align_corners']))
        return func(*args, **kwargs)


def interpolate_deterministically(model: torch.nn.Module) -> None:
    """Enter `DeterministicInterpolation` for every forward pass of `model`."""
    entered: list[DeterministicInterpolation] = []

    def before(*_: Any) -> None:
        entered.append(DeterministicInterpolation())
        entered[-1].__enter__()

    def after(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after, always_call=True)
