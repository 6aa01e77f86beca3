"""Shard a model over the ranks when training begins, and keep its checkpoints whole."""

from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..effective_batch import effective_batch
from ..fully_shard import FullyShard, keep_whole, whole
from ..runner_model import unwrapped_model
from .safe_checkpoint import SafeCheckpointHook


@HOOKS.register_module()
class FullyShardHook(Hook):
    """What `model_wrapper_cfg=dict(type='FullyShard')` needs; `prepare_launch` adds it to such a recipe.

    Checkpoints have whole parameters and optimizer states, as those of any other run: SafeCheckpointHook asks all ranks
    for their shares before rank 0 writes, and the whole ones are in place before any other hook looks. For validation
    the parameters are gathered once, since ranks may have different numbers of samples.

    Raises:
        ValueError: Beside what needs whole parameters in training: moving averages of weights, several optimizers,
            mmengine's own CheckpointHook, checkpoints in the middle of an accumulation.
    """

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._whole: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        if isinstance(runner.model, FullyShard):
            refuse_what_needs_whole_parameters(runner)
            runner.logger.info(f'weights, gradients and optimizer state are sharded over {runner.world_size} ranks')

    def before_val(self, runner: Runner) -> None:
        keep_whole(runner.model, True)

    def after_val(self, runner: Runner) -> None:
        keep_whole(runner.model, False)

    def gather_for_checkpoint(self, runner: Runner) -> None:
        state = dict(
            state_dict=whole(unwrapped_model(runner).state_dict()), optimizer=whole(runner.optim_wrapper.state_dict())
        )
        self._whole = state if is_main_process() else {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        for name, entries in self._whole.items():
            checkpoint.get(name, {}).update(entries)
        self._whole = {}


def refuse_what_needs_whole_parameters(runner: Runner) -> None:
    """Raise ValueError where a hook or the optimizer would meet shards and take them for parameters."""
    reason = None
    accumulation = effective_batch(runner).accumulation
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        reason = 'OptimWrapperDict has several optimizers'
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            reason = f'{type(hook).__name__} averages whole parameters'
        elif isinstance(hook, CheckpointHook) and not isinstance(hook, SafeCheckpointHook):
            reason = f'{type(hook).__name__} would save the shards of rank 0 alone: SafeCheckpointHook is needed'
        elif isinstance(hook, CheckpointHook) and not hook.by_epoch and hook.interval % accumulation:
            reason = f'checkpoints every {hook.interval} iterations fall into accumulations of {accumulation}'
    if reason:
        raise ValueError(f"model_wrapper_cfg type='FullyShard' does not go with this recipe: {reason}")
