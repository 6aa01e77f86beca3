"""The models of a Runner, whatever wraps them."""

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def unwrapped_model(runner: Runner) -> nn.Module:
    """The recipe's own model, without the wrapper that distributed training puts around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def averaged_model(runner: Runner) -> nn.Module | None:
    """The moving average that EMAHook keeps, once a run has begun; None without that hook."""
    models = (getattr(hook, 'ema_model', None) for hook in runner.hooks if isinstance(hook, EMAHook))
    return next((model.module for model in models if model is not None), None)
