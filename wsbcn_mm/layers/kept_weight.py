"""A standardised weight that serves many forwards."""

from typing import Any

import torch
from torch import Tensor

from ..ops.ws.fused import Standardized, connect, standardize
from ..ops.ws.weight_standardization import Variant, divisor_of, fan_in


class KeptWeight:
    """The last standardised weight of a layer, made again whenever the raw weight is seen to have changed.

    Seen are in-place operations (load_state_dict among them), another tensor in the weight's place, another dtype.
    Not seen is what torch does not count, writes through `weight.data` and those of fused optimizers: `drop` after
    them.
    Gradients of every use flow to the raw weight as if it had been standardised for that use alone.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Forget the weight; the next use makes it again."""
        self._standardized: Standardized | None = None
        self._made_from: tuple[Any, ...] = ()
        self._source: Tensor | None = None

    def __call__(
        self, weight: Tensor, variant: Variant, dtype: torch.dtype, *, groups: int, transposed: bool
    ) -> Tensor:
        """What `weight_standardize` of these arguments returns."""
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
            # An alias that holds the memory: no other tensor can take its address while that address means this one.
            self._source = weight.detach()
            divisor = divisor_of(variant, fan_in(weight, groups=groups, transposed=transposed))
            self._standardized = standardize(weight, divisor, dtype, groups=groups, transposed=transposed)
            self._made_from = made_from
        return connect(weight, self._standardized)


def may_be_kept(weight: Tensor) -> bool:
    """Whether changes of `weight` can be seen, and its standardisation left out of what runs later.

    Inference tensors do not count their changes; a CUDA graph replays what was captured and nothing else.
    """
    return not weight.is_inference() and not (weight.is_cuda and torch.cuda.is_current_stream_capturing())
