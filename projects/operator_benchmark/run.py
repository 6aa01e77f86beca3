"""Time and memory of WS and BCN beside BatchNorm, GroupNorm, the plain formulas and mmcv's ConvWS.

python -m projects.operator_benchmark.run                    everything, into results/, then the documents' tables
python -m projects.operator_benchmark.run --sections norms   one section; the others keep their rows
python -m projects.operator_benchmark.run --quick            tiny shapes, into work_dirs/benchmark: does it run?
python -m projects.operator_benchmark.run --report           tables and pictures from the CSV files, no measuring

Each section checks its sides at the gate, times them in interleaved rounds, and gives a row for every side of a case.
"""

from __future__ import annotations

import argparse
import os
import sys
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

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / 'results'
DTYPES = {'cpu': ('float32',), 'cuda': ('float32', 'bfloat16')}
LAYOUTS = ('contiguous', 'channels_last')
MIB = 2**20
LEFT_OUT = 'left out of this run'


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        device: On which device.
        dtypes: Names of dtypes of torch.
        layouts: Of `LAYOUTS`; on a CPU the training steps take the first alone.
        sections: Of `SECTIONS`.
        rounds: Interleaved samples of operators.
        step_rounds: Interleaved samples of training steps.
        leave_out: Sides that get a row without samples.
        quick: Tiny shapes and models, to see that everything runs.
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
    """What the rows that are compared with each other share."""

    name: str
    dtype: str
    layout: str
    size_bytes: int = 0


@dataclass
class Bench:
    """The settings, and where rows and progress go."""

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
        """Interleave the works of one case: a row for each, and for each side that failed before it could run."""
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
    """Norm + ReLU: time of forward and backward; what is saved in between, in activations, the parameters left out."""
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
    """Weight Standardization of all convolutions of a ResNet-50 in float32, the dtype that weights have."""
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
    """Training steps of whole models at batch 1: time, bytes kept for the backward pass, most bytes at once."""
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
    """The steps of a case as CUDA graphs, and for those that cannot be captured, why."""
    if case.task == 'segmentation':
        return {}, dict.fromkeys(
            works, "mmseg's losses index by masks, which waits for the GPU: no graph can hold that"
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
"""What measures each part of a run, and the sections of the rows that it makes."""


def measure(name: str, settings: Settings, console: Console) -> list[Row]:
    """All rows of one of `SECTIONS`.

    Raises:
        GateError: If an operator of this library is wrong; nothing of that case is timed.
    """
    columns = (TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bench = Bench(settings, describe_environment(settings.device), progress, console)
        return list(SECTIONS[name][0](bench))


def run(settings: Settings, out: Path, console: Console) -> Path:
    """Measure, and write measurements.csv into a folder of this device, anew after every section.

    Sections that are not measured now keep the rows of an earlier run.

    Returns:
        The file.
    """
    file = out / report.folder_name(describe_environment(settings.device)) / 'measurements.csv'
    for name in settings.sections:
        rows = measure(name, settings, console)
        earlier = load_csv(file) if file.is_file() else []
        save_csv([row for row in earlier if row.section not in SECTIONS[name][1]] + rows, file)
    return file


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    parser.add_argument('--sections', nargs='+', choices=[*SECTIONS], help='default: all')
    dtypes = ['float32', 'bfloat16', 'float16']
    parser.add_argument('--dtypes', nargs='+', choices=dtypes, help='default: float32, and bfloat16 on a GPU')
    parser.add_argument('--layouts', nargs='+', choices=LAYOUTS, default=LAYOUTS, help='default: both')
    parser.add_argument('--threads', type=int, help='threads of the CPU operators (default: the cores of this process)')
    parser.add_argument('--rounds', type=int, help='rounds of the operators (default: 30)')
    parser.add_argument('--step-rounds', type=int, help='rounds of the training steps (default: 7)')
    parser.add_argument('--leave-out', nargs='+', default=[], metavar='SIDE', help='sides not to measure')
    parser.add_argument('--quick', action='store_true', help='tiny shapes and models, three rounds')
    parser.add_argument('--report', action='store_true', help='only make tables and pictures from the CSV files')
    parser.add_argument('--out', type=Path, help='folder of the results; the documents show those of the default one')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> None:
    """Measure and report.

    Raises:
        ValueError: For arguments that cannot be followed on this machine.
    """
    args = parse_args(arguments)
    console = console or Console(width=None if sys.stdout.isatty() else 160)
    out = args.out or (ROOT / 'work_dirs' / 'benchmark' if args.quick else RESULTS)
    if args.report:
        make_reports(out, console)
        return
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda needs a GPU, and torch sees none')
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    known = {*norms.sides(), *weights.SIDES, *(side for case in steps.CASES for side in case.sources)}
    if unknown := sorted(set(args.leave_out) - known):
        raise ValueError(f'--leave-out {" ".join(unknown)}: no such side; the sides are {", ".join(sorted(known))}')
    # As in the recipes' env_cfg.
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    settings = Settings(
        device,
        dtypes=tuple(args.dtypes or DTYPES[device.type]),
        layouts=tuple(args.layouts),
        sections=tuple(args.sections or SECTIONS),
        rounds=args.rounds or (3 if args.quick else 30),
        step_rounds=args.step_rounds or (3 if args.quick else 7),
        leave_out=tuple(args.leave_out),
        quick=args.quick,
    )
    file = run(settings, out, console)
    make_reports(out, console)
    console.print(f'-> {file}')


def make_reports(results: Path, console: Console) -> None:
    """Pictures of every device beside its CSV file, and the tables of the documents if they show these."""
    for file in sorted(results.glob('*/measurements.csv')):
        rows = load_csv(file)
        report.write_pictures(rows, file.parent)
        report.print_tables(rows, console)
    if results == RESULTS:
        report.update_readme(ROOT / 'docs' / 'benchmarks.md', results, report.summary_tables)
        report.update_readme(Path(__file__).with_name('README.md'), results, report.all_tables, pictures=True)


if __name__ == '__main__':
    main()
