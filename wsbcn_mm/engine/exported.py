"""Run exported files, compare them with the network they come from, and quantise them."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..surgery.export import SUFFIXES
from ..surgery.fold import largest_difference
from .environment import pip_install

Run = Callable[[Tensor], Tensor]


class Comparison(NamedTuple):
    """Two networks on one input; durations in milliseconds, the median of several runs."""

    shape: tuple[int, ...]
    difference: float
    """Largest absolute difference of the outputs."""
    scale: float
    """Largest absolute output."""
    agreement: float
    """Part of the positions at which both choose the same class."""
    original_ms: float
    exported_ms: float

    def __str__(self) -> str:
        size = ' x '.join(map(str, self.shape))
        return (
            f'{size:>22}: differs by {self.difference:.1e} where outputs reach {self.scale:.1e}, '
            f'same class {100 * self.agreement:.2f} %, {self.original_ms:.1f} -> {self.exported_ms:.1f} ms'
        )


def require_onnx() -> None:
    """Raise ImportError with what to do where a package of the `deploy` extra is missing."""
    missing = [name for name in ('onnx', 'onnxruntime', 'onnxscript') if find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}, which this environment lacks: {pip_install(missing)}')


def load_exported(path: str | Path) -> Run:
    """A function that runs an exported file on the CPU: input -> logits.

    Raises:
        ValueError: For a suffix that no format has.
    """
    suffix = Path(path).suffix
    if suffix == SUFFIXES['onnx']:
        return load_onnx(path)
    if suffix == SUFFIXES['torch_export']:
        return without_gradients(torch.export.load(str(path)).module())
    if suffix == SUFFIXES['torchscript']:
        return without_gradients(torch.jit.load(str(path), map_location='cpu'))
    raise ValueError(f'{str(path)!r} is no exported file: one of {", ".join(SUFFIXES.values())} is expected')


def load_onnx(path: str | Path) -> Run:
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(['logits'], {'input': x.cpu().numpy()})[0])

    return run


def without_gradients(module: Run) -> Run:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return module(x.cpu())

    return run


def quantize_int8(onnx_file: str | Path, out: str | Path) -> None:
    """Post-training quantisation: weights in 8 bits, activations in 8 bits by the range of each input at run time.

    No calibration data are needed. Norms, activations and resizing stay in float32.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(onnx_file))
    # Shapes of the weights before quantisation, which onnxruntime then finds contradicted by the transposed ones.
    del model.graph.value_info[:]
    # The CPU's integer convolution is several times slower with signed weights.
    quantize_dynamic(model, str(out), weight_type=QuantType.QUInt8)


def load_pixels(path: str | Path, rank: int) -> Tensor:
    """An array of pixels (N, 3, *) from 0 to 255, saved by numpy, as float32.

    Raises:
        ValueError: For an array of another shape.
    """
    array = np.load(path)
    if array.ndim != rank or array.shape[1] != 3:
        raise ValueError(f'{str(path)!r} has the shape {array.shape}: (N, 3, *) of {rank} axes is expected')
    return torch.from_numpy(array).float()


def compare(original: Run, exported: Run, x: Tensor, *, repeats: int = 5) -> Comparison:
    """Run both on one input (N, C, *) and compare what they give, (N, K, *)."""
    expected, original_ms = timed(original, x, repeats)
    found, exported_ms = timed(exported, x, repeats)
    difference, scale = largest_difference(expected, found)
    agreement = (expected.argmax(1) == found.argmax(1)).double().mean().item()
    return Comparison(tuple(x.shape), difference, scale, agreement, original_ms, exported_ms)


def timed(run: Run, x: Tensor, repeats: int) -> tuple[Tensor, float]:
    """Output for `x`, and the median duration of further runs in milliseconds."""
    output, durations = run(x), []
    for _ in range(repeats):
        start = time.perf_counter()
        run(x)
        durations.append(1e3 * (time.perf_counter() - start))
    return output, median(durations)
