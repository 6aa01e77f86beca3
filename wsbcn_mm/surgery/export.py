"""Write a folded network to one file that needs neither this package nor the classes of the model."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from .fold import require_folded

Axes = Mapping[int, str]
"""Dynamic axes of the input, and their names."""
LONGEST = 2**31
"""An axis that may be at least this long is dynamic."""


def export(network: nn.Module, example: Tensor, path: str | Path, *, to: str, axes: Axes) -> None:
    """Write `network` to `path`.

    Args:
        network: A folded network with one input and one output.
        example: An input. Its dynamic axes need a length of at least 2: torch treats 1 as a constant. For
            `torch_export` the same holds for feature maps.
        path: File to write. It contains the weights; ONNX is limited to 2 GB of them.
        to: One of `FORMATS`.
        axes: The dynamic axes of the input.

    Raises:
        ValueError: For an unknown format, a network that is not folded, or an example that fixes a dynamic axis.
    """
    if to not in FORMATS:
        raise ValueError(f'to={to!r}: one of {", ".join(FORMATS)} is expected')
    require_folded(network)
    fixed = [f'{name} (axis {axis})' for axis, name in axes.items() if example.shape[axis] < 2]
    if fixed:
        raise ValueError(
            f'example of shape {tuple(example.shape)}: at least 2 is expected along {", ".join(fixed)}, to keep the '
            'axes dynamic'
        )
    with torch.no_grad():
        FORMATS[to](network.eval(), example, str(path), axes)


def to_onnx(network: nn.Module, example: Tensor, path: str, axes: Axes) -> None:
    """Write ONNX with the input `input` and the output `logits`, e.g. for onnxruntime."""
    torch.onnx.export(
        network,
        (example,),
        path,
        dynamo=True,
        input_names=['input'],
        output_names=['logits'],
        dynamic_shapes=(dict(axes),),
        external_data=False,
        verbose=False,
    )


def to_torch_export(network: nn.Module, example: Tensor, path: str, axes: Axes) -> None:
    """Write a `torch.export` program: `torch.export.load(path).module()` runs it, AOTInductor compiles it."""
    program = torch.export.export(network, (example,), dynamic_shapes=(dict.fromkeys(axes, Dim.DYNAMIC),))
    *_, given = (node for node in program.graph.nodes if node.op == 'placeholder')
    for axis, name in axes.items():
        longest = program.range_constraints[given.meta['val'].shape[axis].node.expr].upper
        if longest < LONGEST:
            raise ValueError(
                f'example of shape {tuple(example.shape)}: a feature map has length 1, which limits {name} (axis '
                f'{axis}) to {longest} in the file: a larger example is expected'
            )
    torch.export.save(program, path)


FORMATS: dict[str, Callable[[nn.Module, Tensor, str, Axes], None]] = {
    'onnx': to_onnx,
    'torch_export': to_torch_export,
}
SUFFIXES = {'onnx': '.onnx', 'torch_export': '.pt2'}
