"""Keep the gradients of an unfinished accumulation in checkpoints."""

from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ..effective_batch import effective_batch
from ..rank_states import State, accumulating, gather_states
from ..runner_model import unwrapped_model

KEY = 'accumulated_gradients'
"""Entry of a checkpoint, there only if it was written in the middle of an accumulation: name -> gradient, by rank."""


@HOOKS.register_module()
class AccumulatedGradientsHook(Hook):
    """Save and restore what the micro-batches of an optimizer step that is not yet complete have added up.

    Only a checkpoint from the middle of an accumulation has such gradients. They are of the size of the model for each
    rank, since ranks add up their own until the step; SafeCheckpointHook brings them together. (mmengine starts the
    rest of that step from zero, and warns of it; its warning remains.)
    """

    def __init__(self) -> None:
        self._gathered: list[State] = []
        self._loaded: State = {}

    def gather_for_checkpoint(self, runner: Runner) -> None:
        self._gathered = gather_states(gradients(runner)) if accumulating(runner) else []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if accumulating(runner) and 'optimizer' in checkpoint:
            checkpoint[KEY] = self._gathered or [gradients(runner)]
        self._gathered = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        of_ranks = checkpoint.pop(KEY, [])
        self._loaded = of_ranks[get_rank()] if len(of_ranks) == runner.world_size else {}

    def before_train(self, runner: Runner) -> None:
        batch = effective_batch(runner)
        done = runner.iter % batch.accumulation
        if not done or runner.iter >= runner.max_iters:
            return
        if not self._loaded:
            runner.logger.warning(
                f'the checkpoint is from the middle of an accumulation and lacks gradients of its {batch.devices} '
                f'device(s): the next step misses {done} of {batch.accumulation} micro-batches'
            )
        for name, parameter in unwrapped_model(runner).named_parameters():
            if name in self._loaded:
                parameter.grad = self._loaded[name].to(parameter)
        if self._loaded:
            runner.logger.info(f'the gradients of {done} of {batch.accumulation} micro-batches are restored')
        self._loaded = {}


def gradients(runner: Runner) -> dict[str, Tensor]:
    """Name -> gradient of this rank, for the parameters that have one."""
    with torch.no_grad():
        return {name: p.grad for name, p in unwrapped_model(runner).named_parameters() if p.grad is not None}
