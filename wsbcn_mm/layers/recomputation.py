"""Detect the recomputed forward of activation checkpointing: it runs inside the backward pass.

A layer whose forward changes its own state must do so once per batch, in the first forward. `torch.utils.checkpoint`
does not signal the second one in either mode, but only autograd's engine runs it, within a graph task.
"""

import torch
from torch import Tensor


def is_recomputation() -> bool:
    """Whether this thread is inside a backward pass. Compiled code must use `first_pass`."""
    return torch._C._current_graph_task_id() != -1


# A CUDA graph would replay the captured answer. A compiler never recomputes operators that are tagged as random.
@torch.library.custom_op(
    'wsbcn_mm::first_pass',
    mutates_args=(),
    tags=(torch.Tag.cudagraph_unsafe, torch.Tag.nondeterministic_seeded),
)
def first_pass(like: Tensor) -> Tensor:
    """1, or 0 in a recomputation, evaluated when compiled code runs: an int64 scalar on the device of `like`."""
    return torch.full((), int(not is_recomputation()), dtype=torch.int64, device=like.device)


@first_pass.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=like.device)
