"""How many samples an optimizer step sees."""

from mmengine.runner import Runner

from ..microbatch.batch_plan import EffectiveBatch


def effective_batch(runner: Runner) -> EffectiveBatch:
    """Of a Runner that is about to train."""
    loader = runner.train_dataloader
    return EffectiveBatch(
        devices=runner.world_size,
        per_device=loader.batch_size or loader.batch_sampler.batch_size,
        accumulation=getattr(runner.optim_wrapper, '_accumulative_counts', 1),
    )
