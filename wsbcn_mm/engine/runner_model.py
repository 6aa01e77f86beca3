"""The model of a Runner, whatever wraps it."""

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn


def unwrapped_model(runner: Runner) -> nn.Module:
    """The recipe's own model, without the wrapper that distributed training puts around it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
