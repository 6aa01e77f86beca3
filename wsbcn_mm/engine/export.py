"""Fold a recipe's checkpoint, export it to files that run without this package, and compare them with the model."""

import json
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from ..surgery.export import SUFFIXES, export
from ..surgery.fold import FoldReport, fold, largest_difference
from .environment import pip_install

Run = Callable[[Tensor], Tensor]

TOLERANCE = 1e-4
"""Largest accepted difference, as a fraction of the largest output."""


class Comparison(NamedTuple):
    """Two networks compared on one input. Durations are in milliseconds, the median of several runs."""

    shape: tuple[int, ...]
    difference: float
    """Largest absolute difference of the outputs."""
    scale: float
    """Largest absolute output."""
    agreement: float
    """Fraction of the positions at which both choose the same class."""
    original_ms: float
    exported_ms: float

    def __str__(self) -> str:
        size = ' x '.join(map(str, self.shape))
        return (
            f'{size:>22}: differs by {self.difference:.1e} where outputs reach {self.scale:.1e}, '
            f'same class {100 * self.agreement:.2f} %, {self.original_ms:.1f} -> {self.exported_ms:.1f} ms'
        )


class Exported(NamedTuple):
    """Results of `export_checkpoint`.

    Attributes:
        input: Description of the input of the files.
        folding: Report of the folding.
        files: Written files by format, including `int8`.
        comparisons: By format, comparisons of the file with the model, one for each input.
        metrics: Metrics of the recipe's test, for the checkpoint and for each file; empty if it was not run.
    """

    input: str
    folding: FoldReport
    files: dict[str, Path]
    comparisons: dict[str, list[Comparison]]
    metrics: dict[str, dict[str, float]]


def export_checkpoint(
    cfg: Config,
    checkpoint: str,
    deployment: ModuleType,
    out: Path,
    *,
    to: str,
    inputs: Sequence[Tensor],
    example: Tensor,
    int8: bool = False,
    evaluate: bool = False,
) -> Exported:
    """Export a recipe's checkpoint.

    Args:
        cfg: Recipe of the checkpoint, after `wsbcn_mm.engine.recipe.load.load_checkpoint_into`.
        checkpoint: File of the checkpoint.
        deployment: `wsbcn_mm.segmentation.models.deployment` or `wsbcn_mm.video.models.deployment`.
        out: File to write.
        to: A format of `wsbcn_mm.surgery.export.SUFFIXES`.
        inputs: Pixels from 0 to 255, (N, 3, *), to compare the files with the model.
        example: Pixels to trace the model with.
        int8: Also write an ONNX file in 8 bits, and evaluate.
        evaluate: Run the recipe's test with the checkpoint, and with each file in place of its model.
    """
    runner = Runner.from_cfg(cfg)
    # The Runner itself would only warn about missing weights, and random ones would be exported.
    runner.load_checkpoint(checkpoint, strict=True)
    model = runner.model.cpu().eval()
    network = deployment.Network(model).eval()
    folded, folding = fold(network, example)

    out.parent.mkdir(parents=True, exist_ok=True)
    export(folded, example, out, to=to, axes=deployment.AXES)
    files = {to: out}
    if int8:
        files['int8'] = out.with_suffix('.int8.onnx')
        quantize_int8(out, files['int8'])
    runs = {name: load_exported(file) for name, file in files.items()}
    comparisons = {name: [compare(without_gradients(network), run, x) for x in inputs] for name, run in runs.items()}
    metrics = {}
    if evaluate or int8:
        metrics['checkpoint'] = runner.test()
        for name, run in runs.items():
            deployment.answer_with(run, model)
            metrics[name] = runner.test()
    pixels = f'{deployment.channel_order(model)} pixels from 0 to 255, float32'
    return Exported(pixels, folding, files, comparisons, metrics)


def write_report(done: Exported, path: Path, **entries: object) -> None:
    """Write the results of an export as JSON, after `entries`."""
    report = entries | dict(
        torch=torch.__version__,
        input=done.input,
        folding=vars(done.folding),
        files={name: dict(path=str(file), bytes=file.stat().st_size) for name, file in done.files.items()},
        comparisons={name: [one._asdict() for one in found] for name, found in done.comparisons.items()},
        metrics=done.metrics,
    )
    path.write_text(json.dumps(report, indent=2, default=float) + '\n')


def excess(done: Exported, to: str) -> str | None:
    """Return why a file must not be used; None if it agrees with the model."""
    worst = max(one.difference / max(1.0, one.scale) for one in done.comparisons[to])
    # Other libraries sum in another order. The effect is as harmless as the rounding of the model itself.
    allowed = max(TOLERANCE, 10 * done.folding.rounding / max(1.0, done.folding.scale))
    if worst <= allowed:
        return None
    return (
        f'{done.files[to]} differs from the model by {worst:.1e} of its largest output, more than {allowed:.1e}: '
        'do not use it'
    )


def require_onnx() -> None:
    """Raise ImportError with the command to run if a package of the `deploy` extra is missing."""
    missing = [name for name in ('onnx', 'onnxruntime', 'onnxscript') if find_spec(name) is None]
    if missing:
        raise ImportError(f'ONNX needs {", ".join(missing)}, which this environment lacks: {pip_install(missing)}')


def load_exported(path: str | Path) -> Run:
    """Return a function that runs an exported file on the CPU: input -> logits.

    Raises:
        ValueError: If no format has the suffix of `path`.
    """
    suffix = Path(path).suffix
    if suffix == SUFFIXES['onnx']:
        return load_onnx(path)
    if suffix == SUFFIXES['torch_export']:
        return without_gradients(torch.export.load(str(path)).module())
    raise ValueError(f'path={str(path)!r}: a file with the suffix {" or ".join(SUFFIXES.values())} is expected')


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
    """Quantise an ONNX file after training: weights to 8 bits, activations to 8 bits by the range of each input.

    The ranges are measured at run time, so calibration data are not needed. Norms, activation functions and resizing
    stay in float32.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(onnx_file))
    # onnxruntime would find the recorded shapes of the weights in conflict with the transposed quantised ones.
    del model.graph.value_info[:]
    # The CPU's integer convolution is several times slower with signed weights.
    quantize_dynamic(model, str(out), weight_type=QuantType.QUInt8)


def load_pixels(path: str | Path, rank: int) -> Tensor:
    """Load an array of pixels (N, 3, *) from 0 to 255, saved by numpy, as float32.

    Raises:
        ValueError: If the array has another shape.
    """
    array = np.load(path)
    if array.ndim != rank or array.shape[1] != 3:
        raise ValueError(f'{str(path)!r} has the shape {array.shape}: (N, 3, *) of {rank} axes is expected')
    return torch.from_numpy(array).float()


def compare(original: Run, exported: Run, x: Tensor, *, repeats: int = 5) -> Comparison:
    """Run both on one input (N, C, *) and compare their outputs (N, K, *)."""
    expected, original_ms = timed(original, x, repeats)
    found, exported_ms = timed(exported, x, repeats)
    difference, scale = largest_difference(expected, found)
    agreement = (expected.argmax(1) == found.argmax(1)).double().mean().item()
    return Comparison(tuple(x.shape), difference, scale, agreement, original_ms, exported_ms)


def timed(run: Run, x: Tensor, repeats: int) -> tuple[Tensor, float]:
    """Return the output for `x`, and the median duration of further runs in milliseconds."""
    output, durations = run(x), []
    for _ in range(repeats):
        start = time.perf_counter()
        run(x)
        durations.append(1e3 * (time.perf_counter() - start))
    return output, median(durations)
