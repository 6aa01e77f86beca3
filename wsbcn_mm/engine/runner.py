"""What a Runner trains: its models, whatever wraps them, and its effective batch."""

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..microbatch.batch_plan import EffectiveBatch


def unwrapped_model(runner: Runner) -> nn.Module:
    """Return the recipe's own model, without the wrapper of distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def averaged_model(runner: Runner) -> nn.Module | None:
    """Return the moving average of EMAHook; None without that hook, or before the run."""
    models = (getattr(hook, 'ema_model', None) for hook in runner.hooks if isinstance(hook, EMAHook))
    return next((model.module for model in models if model is not None), None)


def effective_batch(runner: Runner) -> EffectiveBatch:
    """Return the effective batch of `runner`."""
    loader = runner.train_dataloader
    return EffectiveBatch(
        devices=runner.world_size,
        per_device=loader.batch_size or loader.batch_sampler.batch_size,
        accumulation=getattr(runner.optim_wrapper, '_accumulative_counts', 1),
    )
