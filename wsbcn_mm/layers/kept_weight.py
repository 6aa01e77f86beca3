"""A standardised weight that is reused in many forwards."""

from typing import Any

import torch
from torch import Tensor

from ..ops.ws.fused import Standardized, connect, standardize
from ..ops.ws.weight_standardization import Variant, divisor_of, fan_in


class KeptWeight:
    """The last standardised weight of a layer, recomputed when the raw weight has changed.

    It notices in-place operations (including load_state_dict), another tensor in place of the weight, and another
    dtype. It does not notice writes that torch does not count: those through `weight.data` and those of fused
    optimizers. Call `drop` after them. Gradients of every use flow to the raw weight as if that use had standardised
    it.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Forget the weight; the next use recomputes it."""
        self._standardized: Standardized | None = None
        self._made_from: tuple[Any, ...] = ()
        self._source: Tensor | None = None

    def __call__(
        self, weight: Tensor, variant: Variant, dtype: torch.dtype, *, groups: int, transposed: bool
    ) -> Tensor:
        """The result of `weight_standardize` with these arguments."""
        made_from = (
            weight.data_ptr(),
            weight._version,
            weight.shape,
            weight.stride(),
            weight.dtype,
            variant,
            dtype,
            torch.is_inference_mode_enabled(),
        )
        if self._standardized is None or made_from != self._made_from:
            # An alias keeps the memory alive, so that no other tensor can get the address that identifies this one.
            self._source = weight.detach()
            divisor = divisor_of(variant, fan_in(weight, groups=groups, transposed=transposed))
            self._standardized = standardize(weight, divisor, dtype, groups=groups, transposed=transposed)
            self._made_from = made_from
        return connect(weight, self._standardized)


def may_be_kept(weight: Tensor) -> bool:
    """Whether changes of `weight` can be noticed, and later forwards may skip its standardisation.

    Inference tensors do not count their changes. A CUDA graph replays only what was captured.
    """
    return not weight.is_inference() and not (weight.is_cuda and torch.cuda.is_current_stream_capturing())
