"""Shard weights, gradients and the optimizer's state over the ranks (torch's FSDP2) under the stock Runner.

The Runner builds, initialises, loads and resumes the model with whole parameters, as usual. The first training step
shards them. Checkpoints contain whole parameters again, like those of any other run. Running statistics stay whole on
every rank.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS, MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_iter, tree_map_only

from ...microbatch.activation_memory import find_blocks
from ..checkpoint.saving import SafeCheckpointHook
from ..runner import effective_batch, unwrapped_model


@MODEL_WRAPPERS.register_module()
class FullyShard(nn.Module):
    """Replace DistributedDataParallel by a wrapper that shards the model in the first training step.

    By then, all hooks have prepared training with whole parameters. The wrapper requires `FullyShardHook`.

    Args:
        module: The model.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._is_sharded = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train_step(self, data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        if not self._is_sharded:
            shard(self.module, optim_wrapper.optimizer)
            self._is_sharded = True
        return self.module.train_step(data, optim_wrapper)

    def val_step(self, data: Any) -> Any:
        return self.module.val_step(data)

    def test_step(self, data: Any) -> Any:
        return self.module.test_step(data)


def shard(model: nn.Module, optimizer: Optimizer) -> None:
    """Shard the parameters of a model and their optimizer state. The parameters must be the same on all ranks.

    Each block (`wsbcn_mm.microbatch.activation_memory.find_blocks`) is gathered separately when it runs, the remaining
    parameters with the model.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in find_blocks(model).values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group['params'] = [sharded[names[parameter]] for parameter in group['params']]
    states: defaultdict[Tensor, Any] = defaultdict(dict)
    for parameter, state in optimizer.state.items():
        new = sharded[names[parameter]]
        states[new] = {key: _sharded_like(new, value) for key, value in state.items()}
    optimizer.state = states


def _sharded_like(parameter: Tensor, value: Any) -> Any:
    """Shard an entry of an optimizer's state like its parameter, if the two have the same shape."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


@torch.no_grad()
def whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a state dict that contain sharded tensors, whole and on the CPU. All ranks must call it."""
    sharded = {
        name: entry for name, entry in state.items() if any(isinstance(one, DTensor) for one in tree_iter(entry))
    }
    return tree_map_only(DTensor, lambda one: one.full_tensor().cpu(), sharded)


def keep_whole(model: nn.Module, keep: bool) -> None:
    """Gather a sharded model's parameters on all ranks if `keep`, else shard them again.

    While the parameters are kept, forward passes do not communicate: ranks may run different numbers of them.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(not keep, recurse=False)
            if keep:
                module.unshard()
            else:
                module.reshard()


@HOOKS.register_module()
class FullyShardHook(Hook):
    """Gather whole parameters for checkpoints and validation under `model_wrapper_cfg=dict(type='FullyShard')`.

    `prepare_launch` adds this hook to such a recipe.

    Checkpoints have whole parameters and optimizer states, like those of any other run. SafeCheckpointHook collects the
    shards of all ranks before rank 0 writes, and this hook puts the whole tensors in place before any other hook reads
    the checkpoint. For validation the parameters are gathered once, since ranks may have different numbers of samples.

    Raises:
        ValueError: If the recipe uses a feature that needs whole parameters in training: moving averages of weights,
            several optimizers, mmengine's own CheckpointHook, or checkpoints in the middle of an accumulation.
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
    """Raise ValueError if a hook or the optimizer would mistake shards for whole parameters."""
    reason = None
    accumulation = effective_batch(runner).accumulation
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        reason = 'OptimWrapperDict has several optimizers'
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            reason = f'{type(hook).__name__} averages whole parameters'
        elif isinstance(hook, CheckpointHook) and not isinstance(hook, SafeCheckpointHook):
            reason = f'{type(hook).__name__} would save only the shards of rank 0: use SafeCheckpointHook'
        elif isinstance(hook, CheckpointHook) and not hook.by_epoch and hook.interval % accumulation:
            reason = f'checkpoints every {hook.interval} iterations interrupt accumulations of {accumulation}'
    if reason:
        raise ValueError(f"model_wrapper_cfg type='FullyShard' does not support this recipe: {reason}")
