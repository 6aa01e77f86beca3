"""mmseg's EncoderDecoder with convolution biases before its norms; folding puts the batch half of BCN there.

It needs only torch and mmseg: tools/fold.py copies this file beside the configs that use it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn


@MODELS.register_module(force=True)
class FoldedEncoderDecoder(EncoderDecoder):
    """EncoderDecoder of a folded checkpoint.

    Args:
        biased_convs: Names of convolutions that get a bias. mmseg builds convolutions before a norm without one, which
            a config cannot change.
        **kwargs: Arguments of mmseg's `EncoderDecoder`.
    """

    def __init__(self, biased_convs: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in biased_convs:
            conv = self.get_submodule(name)
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
