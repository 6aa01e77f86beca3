"""Keep the gradients of an incomplete accumulation in checkpoints, from all ranks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, get_comm_device, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ..runner import effective_batch, unwrapped_model

State = dict[str, Tensor]


KEY = 'accumulated_gradients'
"""Entry of a checkpoint from the middle of an accumulation: name -> gradient, one dict per rank."""


@HOOKS.register_module()
class AccumulatedGradientsHook(Hook):
    """Save and restore the accumulated gradients of an optimizer step that is not complete.

    Only a checkpoint from the middle of an accumulation has them. Each rank accumulates its own, so they take the size
    of the model per rank; SafeCheckpointHook gathers them. (mmengine warns that it starts the rest of that step from
    zero; the warning remains.)
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
    """Return name -> gradient of this rank, for the parameters that have one."""
    with torch.no_grad():
        return {name: p.grad for name, p in unwrapped_model(runner).named_parameters() if p.grad is not None}


def accumulating(runner: Runner) -> bool:
    """Whether the last forward pass was in the middle of an accumulation."""
    wrapper = runner.optim_wrapper
    return isinstance(wrapper, OptimWrapper) and not wrapper.should_update()


def gather_states(state: Mapping[str, Tensor]) -> list[State]:
    """Return the states of all ranks, in order and on the CPU, on rank 0, and nothing elsewhere; a collective call.

    Tensors are sent one at a time, so a GPU needs room for only one.
    """
    own = {name: tensor.detach().to('cpu', copy=True) for name, tensor in state.items()} if get_rank() == 0 else {}
    if get_world_size() == 1:
        return [own]
    device = get_comm_device()
    described = all_gather_object({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()})
    if get_rank() > 0:
        for tensor in state.values():
            dist.send(tensor.detach().to(device).contiguous(), 0)
        return []
    return [own] + [
        {name: _received(shape, dtype, device, rank) for name, (shape, dtype) in described[rank].items()}
        for rank in range(1, get_world_size())
    ]


def _received(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rank: int) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype, device=device)
    dist.recv(tensor, rank)
    return tensor.cpu()
