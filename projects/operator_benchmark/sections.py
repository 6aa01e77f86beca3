"""The sections of the benchmark: the gate, then interleaved rounds, a row for every side of every case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from projects.operator_benchmark import norms, report, steps, weights
from projects.operator_benchmark.memory import saved_bytes
from projects.operator_benchmark.rows import Environment, Row, describe_environment, load_csv, save_csv
from projects.operator_benchmark.timing import Work, interleave, reason_of
from wsbcn_mm.diagnostics.activation_bytes import activation_bytes

DTYPES = {'cpu': ('float32',), 'cuda': ('float32', 'bfloat16')}
LAYOUTS = ('contiguous', 'channels_last')
MIB = 2**20
LEFT_OUT = 'left out of this run'


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        device: Where everything runs.
        dtypes: Names of torch's dtypes.
        layouts: From `LAYOUTS`; on a CPU the training steps use only the first.
        sections: From `SECTIONS`.
        rounds: Number of interleaved samples of an operator.
        step_rounds: Number of interleaved samples of a training step.
        leave_out: Sides that get a row without samples.
        quick: Use tiny shapes and models, to see that everything runs.
    """

    device: torch.device
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...]
    sections: tuple[str, ...]
    rounds: int = 30
    step_rounds: int = 7
    leave_out: tuple[str, ...] = ()
    quick: bool = False


@dataclass(frozen=True)
class Case:
    """What rows that are compared with each other share."""

    name: str
    dtype: str
    layout: str
    size_bytes: int = 0


@dataclass
class Bench:
    """The settings, the environment, and where progress is shown."""

    settings: Settings
    environment: Environment
    progress: Progress
    console: Console

    def row(self, section: str, unit: str, case: Case, side: str, samples: Sequence[float], reason: str = '') -> Row:
        return Row(
            section=section,
            case=case.name,
            side=side,
            dtype=case.dtype,
            layout=case.layout,
            unit=unit,
            size_bytes=case.size_bytes,
            environment=self.environment,
            samples=tuple(samples),
            reason=reason,
        )

    def time(
        self,
        section: str,
        case: Case,
        works: Mapping[str, Work],
        failed: Mapping[str, str],
        *,
        rounds: int,
        warmup: int = 3,
    ) -> Iterator[Row]:
        """Time the works of one case in turns; yield a row for each, and for each side that has failed already."""
        bar = self.progress.add_task(f'{section} {case.name} {case.dtype} {case.layout}', total=rounds)
        samples, reasons = interleave(
            works,
            device=self.settings.device,
            rounds=rounds,
            warmup=warmup,
            advance=lambda: self.progress.advance(bar),
        )
        self.progress.remove_task(bar)
        reasons |= failed
        for side, reason in reasons.items():
            self.console.print(f'{case.name}, {side}: {reason}', style='yellow', markup=False)
        for side in [*works, *failed]:
            yield self.row(section, 'ms', case, side, samples.get(side, ()), reasons.get(side, ''))


def norm_rows(bench: Bench) -> Iterator[Row]:
    """Yield rows of norm + ReLU: time of forward and backward, and memory kept in between without parameters."""
    settings = bench.settings
    shapes = norms.QUICK_SHAPES if settings.quick else norms.SHAPES
    if settings.device.type == 'cuda' and not settings.quick:
        shapes += norms.LARGE_SHAPES
    for shape, dtype, layout in product(shapes, settings.dtypes, settings.layouts):
        torch.compiler.reset()
        problem = norms.draw(shape, getattr(torch, dtype), layout, settings.device)
        error = norms.gate(problem)
        case = Case('x'.join(map(str, shape)), dtype, layout, problem.x.nbytes)
        bench.console.print(f'gate {case.name} {dtype} {layout}: largest relative error {error:.1e}')
        sides = norms.sides()
        failed = {name: LEFT_OUT for name in sides if name in settings.leave_out}
        works = {name: norms.forward_and_backward(side, problem) for name, side in sides.items() if name not in failed}
        works['copy'] = norms.copy(problem)
        for row in bench.time('norm_relu', case, works, failed, rounds=settings.rounds):
            yield row
            if side := sides.get(row.side):
                kept = () if row.reason else [saved_bytes(partial(side, problem), problem.leaves[1:]) / case.size_bytes]
                yield bench.row('norm_memory', 'activations', case, row.side, kept, row.reason)


def weight_rows(bench: Bench) -> Iterator[Row]:
    """Yield rows of Weight Standardization of a ResNet-50's convolutions in float32, the dtype of weights."""
    settings = bench.settings
    tensors = weights.conv_weights(settings.device, quick=settings.quick)
    grads = [torch.randn_like(weight) for weight in tensors]
    error = weights.gate(tensors, grads)
    model = 'ResNet-18' if settings.quick else 'ResNet-50'
    size = sum(weight.nbytes for weight in tensors)
    case = Case(f'{model}, {len(tensors)} weights', 'float32', 'contiguous', size)
    bench.console.print(f'gate {case.name}: largest relative error {error:.1e}')
    failed = {name: LEFT_OUT for name in weights.SIDES if name in settings.leave_out}
    works = {
        name: weights.forward_and_backward(side, tensors, grads)
        for name, side in weights.SIDES.items()
        if name not in failed
    }
    yield from bench.time('weights', case, works, failed, rounds=settings.rounds)


def step_rows(bench: Bench) -> Iterator[Row]:
    """Yield rows of training steps at batch 1: time, memory kept for the backward pass, peak memory."""
    settings = bench.settings
    models = steps.QUICK_CASES if settings.quick else steps.CASES
    layouts = settings.layouts if settings.device.type == 'cuda' else settings.layouts[:1]
    for model_case, dtype, layout in product(models, settings.dtypes, layouts):
        case = Case(model_case.name, dtype, layout)
        works: dict[str, Work] = {}
        failed = {side: LEFT_OUT for side in model_case.sources if side in settings.leave_out}
        for side in model_case.sources:
            amounts: tuple[int, ...] = ()
            if side not in failed:
                bench.console.print(f'{case.name} {dtype} {layout}: {side}')
                try:
                    model, loss = steps.build(model_case, side, settings.device, getattr(torch, dtype), layout)
                    step = steps.training_step(model, loss, model_case.accumulation)
                    step()
                    amounts = activation_bytes(loss)
                    works[side] = step
                except Exception as error:
                    failed[side] = reason_of(error)
            kept, peak = amounts[:1], amounts[1:]
            for section, amount in (('step_memory', kept), ('step_peak', peak)):
                yield bench.row(section, 'MiB', case, side, [number / MIB for number in amount], failed.get(side, ''))
        timing = dict(rounds=settings.step_rounds, warmup=1)
        yield from bench.time('step', case, works, failed, **timing)
        if settings.device.type == 'cuda':
            graphs, not_captured = capture(model_case, works)
            case = replace(case, name=f'{case.name}, CUDA graph')
            yield from bench.time('step', case, graphs, failed | not_captured, **timing)


def capture(case: steps.StepCase, works: Mapping[str, Work]) -> tuple[dict[str, Work], dict[str, str]]:
    """Return the steps of a case as CUDA graphs, and the reason for each that cannot be captured."""
    if case.task == 'segmentation':
        return {}, dict.fromkeys(
            works, "mmseg's losses index by masks, which waits for the GPU; a CUDA graph cannot do that"
        )
    graphs, failed = {}, {}
    for side, step in works.items():
        try:
            graphs[side] = steps.in_cuda_graph(step)
        except Exception as error:
            failed[side] = reason_of(error)
    return graphs, failed


SECTIONS: dict[str, tuple[Callable[[Bench], Iterator[Row]], tuple[str, ...]]] = {
    'norms': (norm_rows, ('norm_relu', 'norm_memory')),
    'weights': (weight_rows, ('weights',)),
    'steps': (step_rows, ('step', 'step_memory', 'step_peak')),
}
"""For each section of a run, the function that measures it and the sections of its rows."""


def all_sides() -> set[str]:
    """Return the names of everything that can be measured, except in quick runs."""
    return {*norms.sides(), *weights.SIDES, *(side for case in steps.CASES for side in case.sources)}


def measure(name: str, settings: Settings, console: Console) -> list[Row]:
    """Measure one of `SECTIONS` and return its rows.

    Raises:
        GateError: If an operator of this library is wrong. Nothing of that case is timed.
    """
    columns = (TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bench = Bench(settings, describe_environment(settings.device), progress, console)
        return list(SECTIONS[name][0](bench))


def run(settings: Settings, out: Path, console: Console) -> Path:
    """Measure, and write measurements.csv into this device's folder after every section.

    Sections that are not measured keep the rows of an earlier run.

    Returns:
        The path of measurements.csv.
    """
    file = out / report.folder_name(describe_environment(settings.device)) / 'measurements.csv'
    for name in settings.sections:
        rows = measure(name, settings, console)
        earlier = load_csv(file) if file.is_file() else []
        save_csv([row for row in earlier if row.section not in SECTIONS[name][1]] + rows, file)
    return file
