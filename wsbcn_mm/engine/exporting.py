"""Fold a recipe's checkpoint, write it to files that run without this package, and compare them with the model."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from ..surgery.export import export
from ..surgery.fold import FoldReport, fold
from .exported import Comparison, compare, load_exported, quantize_int8, without_gradients

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
        cfg: Recipe of the checkpoint, as `wsbcn_mm.engine.recipe.load_checkpoint_into` left it.
        checkpoint: What to read.
        deployment: `wsbcn_mm.segmentation.deployment` or `wsbcn_mm.video.deployment`.
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
