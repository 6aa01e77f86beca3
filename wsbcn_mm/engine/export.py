"""Fold a recipe's checkpoint, write it to files that run without this package, and compare them with the model."""

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


TOLERANCE = 1e-4
"""As a part of the largest output."""


class Exported(NamedTuple):
    """What `export_checkpoint` wrote and found.

    Attributes:
        input: What the files take, in words.
        folding: What was folded.
        files: By format, `int8` among them.
        comparisons: Of each file with the model, one for each input.
        metrics: Of the recipe's test, of the checkpoint and of each file; empty if it was not run.
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
    """Export what a recipe's checkpoint has learned.

    Args:
        cfg: Recipe of the checkpoint, as `wsbcn_mm.engine.recipe.load.load_checkpoint_into` left it.
        checkpoint: What to read.
        deployment: `wsbcn_mm.segmentation.models.deployment` or `wsbcn_mm.video.models.deployment`.
        out: File to write.
        to: A format of `wsbcn_mm.surgery.export.SUFFIXES`.
        inputs: Pixels from 0 to 255, (N, 3, *), on which files and model are compared.
        example: Pixels that the export traces.
        int8: Write an ONNX file in 8 bits too, and evaluate.
        evaluate: Run the recipe's test with the checkpoint and with each file in its place.
    """
    runner = Runner.from_cfg(cfg)
    # The Runner itself would only warn of weights that the checkpoint lacks, and export random ones.
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


def write_report(done: Exported, path: Path, **told: object) -> None:
    """Write all that an export found as JSON, after what is `told` besides."""
    report = told | dict(
        torch=torch.__version__,
        input=done.input,
        folding=vars(done.folding),
        files={name: dict(path=str(file), bytes=file.stat().st_size) for name, file in done.files.items()},
        comparisons={name: [one._asdict() for one in found] for name, found in done.comparisons.items()},
        metrics=done.metrics,
    )
    path.write_text(json.dumps(report, indent=2, default=float) + '\n')


def excess(done: Exported, to: str) -> str | None:
    """What makes a file unfit for use, in words; None if it agrees with the model."""
    worst = max(one.difference / max(1.0, one.scale) for one in done.comparisons[to])
    # Other libraries add up in another order: as harmless as what the model's own rounding does to it.
    allowed = max(TOLERANCE, 10 * done.folding.rounding / max(1.0, done.folding.scale))
    if worst <= allowed:
        return None
    return (
        f'{done.files[to]} differs from the model by {worst:.1e} of its largest output, more than {allowed:.1e}: '
        'do not use it'
    )
