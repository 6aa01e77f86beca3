"""Shard weights, gradients and the optimizer's state over the ranks (torch's FSDP2) under the stock Runner.

The Runner builds, initialises, loads and resumes a model with whole parameters, as it always does; they are sharded
when all that is done, and made whole again for checkpoints, which are those of any other run. Running statistics stay
whole on every rank.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_iter, tree_map_only

from ..microbatch.activation_memory import find_blocks


@MODEL_WRAPPERS.register_module()
class FullyShard(nn.Module):
    """Stands where DistributedDataParallel would; the first training step shards the model.

    By then all hooks have prepared training with whole parameters. `FullyShardHook` goes with it.

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
    """Shard the parameters of a model, the same on all ranks, and what an optimizer has of them.

    Each block (`wsbcn_mm.microbatch.activation_memory.find_blocks`) is gathered by itself when it runs, the rest with
    the model.
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
    """An entry of an optimizer's state, cut as the parameter is if it has its shape."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


@torch.no_grad()
def whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state dict that are or hold sharded tensors, whole and on the CPU. All ranks have to call it."""
    sharded = {
        name: entry for name, entry in state.items() if any(isinstance(one, DTensor) for one in tree_iter(entry))
    }
    return tree_map_only(DTensor, lambda one: one.full_tensor().cpu(), sharded)


def keep_whole(model: nn.Module, keep: bool) -> None:
    """Gather a sharded model's parameters, on all ranks, and keep them until this is undone.

    Forward passes then send nothing, so that ranks may run different numbers of them.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(not keep, recurse=False)
            if keep:
                module.unshard()
            else:
                module.reshard()
