"""Measure time and memory of WS and BCN beside BatchNorm, GroupNorm, the plain formulas and mmcv's ConvWS.

python -m projects.operator_benchmark.run                    everything; writes results/ and the documents' tables
python -m projects.operator_benchmark.run --sections norms   one section; the others keep their rows
python -m projects.operator_benchmark.run --quick            tiny shapes, into work_dirs/, to see that everything runs
python -m projects.operator_benchmark.run --report           tables and pictures from the CSV files, no measurement
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / 'results'


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda if there is a GPU')
    parser.add_argument('--sections', nargs='+', choices=['norms', 'weights', 'steps'], help='default: all')
    dtypes = ['float32', 'bfloat16', 'float16']
    parser.add_argument('--dtypes', nargs='+', choices=dtypes, help='default: float32, and bfloat16 on a GPU')
    layouts = ['contiguous', 'channels_last']
    parser.add_argument('--layouts', nargs='+', choices=layouts, default=layouts, help='default: both')
    parser.add_argument('--threads', type=int, help='threads of the CPU operators (default: the cores of this process)')
    parser.add_argument('--rounds', type=int, help='rounds of the operators (default: 30)')
    parser.add_argument('--step-rounds', type=int, help='rounds of the training steps (default: 7)')
    parser.add_argument('--leave-out', nargs='+', default=[], metavar='SIDE', help='sides not to measure')
    parser.add_argument('--quick', action='store_true', help='tiny shapes and models, three rounds')
    parser.add_argument('--report', action='store_true', help='only make tables and pictures from the CSV files')
    parser.add_argument('--out', type=Path, help='folder of the results (default: results/, or work_dirs/ if --quick)')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Measure and report.

    Raises:
        ValueError: If an argument cannot be followed on this machine.
    """
    args = parse_args(arguments)
    # Before torch is imported: OpenMP threads that wait by spinning make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    import torch
    from rich.console import Console

    from projects.operator_benchmark import sections

    console = console or Console(width=None if sys.stdout.isatty() else 160)
    out = args.out or (ROOT / 'work_dirs' / HERE.name if args.quick else RESULTS)
    if args.report:
        make_reports(out, console)
        return 0
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda: torch finds no GPU')
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    known = sections.all_sides()
    if unknown := sorted(set(args.leave_out) - known):
        raise ValueError(f'--leave-out {" ".join(unknown)}: unknown side; choose from {", ".join(sorted(known))}')
    # As in the recipes' env_cfg.
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    settings = sections.Settings(
        device,
        dtypes=tuple(args.dtypes or sections.DTYPES[device.type]),
        layouts=tuple(args.layouts),
        sections=tuple(args.sections or sections.SECTIONS),
        rounds=args.rounds or (3 if args.quick else 30),
        step_rounds=args.step_rounds or (3 if args.quick else 7),
        leave_out=tuple(args.leave_out),
        quick=args.quick,
    )
    file = sections.run(settings, out, console)
    make_reports(out, console)
    console.print(f'-> {file}')
    return 0


def make_reports(results: Path, console: Console) -> None:
    """Draw the pictures of every device beside its CSV file and print its tables.

    If `results` is the folder that the documents show, their tables are written as well.
    """
    from projects.operator_benchmark import report
    from projects.operator_benchmark.rows import load_csv

    for file in sorted(results.glob('*/measurements.csv')):
        rows = load_csv(file)
        report.write_pictures(rows, file.parent)
        report.print_tables(rows, console)
    if results == RESULTS:
        report.update_readme(ROOT / 'docs' / 'benchmarks.md', results, report.summary_tables)
        report.update_readme(HERE / 'README.md', results, report.all_tables, pictures=True)


if __name__ == '__main__':
    sys.exit(main())
