"""Bring to rank 0, which writes checkpoints, what the ranks do not share."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from mmengine.dist import all_gather_object, get_comm_device, get_rank, get_world_size
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

State = dict[str, Tensor]


def gather_states(state: Mapping[str, Tensor]) -> list[State]:
    """The states of all ranks in their order, on rank 0 and its CPU; none elsewhere. All ranks have to call it.

    They come one tensor at a time, so that a GPU needs room for a single one.
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


def accumulating(runner: Runner) -> bool:
    """Whether the last forward pass was in the middle of an accumulation, on every rank."""
    wrapper = runner.optim_wrapper
    return isinstance(wrapper, OptimWrapper) and not wrapper.should_update()
