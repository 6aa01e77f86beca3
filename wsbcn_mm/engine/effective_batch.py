"""How many samples an optimizer step sees."""

from typing import NamedTuple

from mmengine.runner import Runner


class EffectiveBatch(NamedTuple):
    """The factors of an optimizer step's number of samples."""

    devices: int
    per_device: int
    accumulation: int

    @property
    def samples(self) -> int:
        return self.devices * self.per_device * self.accumulation


def effective_batch(runner: Runner) -> EffectiveBatch:
    """Of a Runner that is about to train."""
    loader = runner.train_dataloader
    return EffectiveBatch(
        devices=runner.world_size,
        per_device=loader.batch_size or loader.batch_sampler.batch_size,
        accumulation=getattr(runner.optim_wrapper, '_accumulative_counts', 1),
    )
