"""Stop before work is lost where the evaluation would score samples twice."""

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..streaming_metric import NO_PADDING, StreamingMetric


@HOOKS.register_module()
class EvaluationPaddingHook(Hook):
    """Refuse a sampler that pads the evaluation of a `StreamingMetric`, which would find out only at its end.

    Raises:
        ValueError: Before training and before an evaluation, for a `DefaultSampler` with `round_up` whose dataset the
            number of processes does not divide.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is not None:
            refuse_padding(runner.val_loop)

    def before_val(self, runner: Runner) -> None:
        refuse_padding(runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        refuse_padding(runner.test_loop)


def refuse_padding(loop) -> None:
    """Raise ValueError if this loop's sampler would pad, and its metric counts each sample."""
    if not any(isinstance(metric, StreamingMetric) for metric in loop.evaluator.metrics):
        return
    processes, samples = get_world_size(), len(loop.dataloader.dataset)
    copies = -samples % processes
    if copies and getattr(loop.dataloader.sampler, 'round_up', False):
        raise ValueError(
            f'{processes} processes cannot share {samples} samples evenly, and the sampler of {type(loop).__name__} '
            f'would have {copies} of them scored twice: {NO_PADDING}'
        )
