"""What sharing normalisation statistics costs a training step of two gloo ranks on CPU.

python -m projects.statistics_sharing.run            writes results/ and the tables in README.md and docs/decisions/
python -m projects.statistics_sharing.run --quick    a tiny model, two rounds, into work_dirs/, to see that it runs
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from projects.common.csv_rows import read_rows, write_rows
from projects.common.readme_tables import write_table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DECISION = ROOT / 'docs' / 'decisions' / '0005-communication.md'
RANKS = 2
GOAL = 0.8
WARMUP = 2
SYNCHRONISED = 'bn-sync'
Rows = list[dict[str, Any]]


def worker(rank: int, folder: str, quick: bool, rounds: int, what: str) -> None:
    """Count and time all cases on one rank; rank 0 writes the files."""
    import torch
    import torch.distributed as dist

    import wsbcn_mm.segmentation
    import wsbcn_mm.video  # noqa: F401
    from projects.statistics_sharing.cases import CASES, QUICK_CASES

    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=RANKS)
    files: dict[str, Rows] = {}
    for case in QUICK_CASES if quick else CASES:
        if what != 'times':
            files['collectives.csv'] = files.get('collectives.csv', []) + count(case)
        if what != 'messages' and case.timed:
            files['steps.csv'] = files.get('steps.csv', []) + measure(case, rounds)
    if rank == 0:
        for name, rows in files.items():
            write_rows(Path(folder) / name, list(rows[0]) if rows else [], rows)
    dist.destroy_process_group()


def count(case: Any) -> Rows:
    """Return what every side of a case sends in a step, for its statistics and for its gradients."""
    from projects.statistics_sharing.cases import SIDES, training_step
    from projects.statistics_sharing.collectives import count_sent

    rows: Rows = []
    for side in SIDES:
        step = training_step(case, side, case.counted)
        for _ in range(WARMUP):
            step.shared()
        alone, shared = count_sent(step.alone), count_sent(step.shared)
        for kind, (calls, size) in shared.items():
            own_calls, own_size = alone.get(kind, (0, 0))
            for part, number, of_part in (
                ('statistics', own_calls, own_size),
                ('gradients', calls - own_calls, size - own_size),
            ):
                if number:
                    rows.append(dict(case=case.name, side=side, part=part, kind=kind, calls=number, bytes=of_part))
    return rows


def measure(case: Any, rounds: int) -> Rows:
    """Time the steps of all sides in turns."""
    from projects.statistics_sharing.cases import SIDES, training_step

    steps = {side: training_step(case, side, case.timed).shared for side in SIDES}
    rows: Rows = []
    for number in range(-WARMUP, rounds):
        for side, step in steps.items():
            ms = round(slowest(step), 3)
            if number >= 0:
                rows.append(dict(case=case.name, side=side, round=number, ms=ms))
    return rows


def slowest(step: Any) -> float:
    """Return the milliseconds of the slowest rank, after a barrier."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    start = time.perf_counter()
    step()
    taken = torch.tensor((time.perf_counter() - start) * 1e3)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return float(taken)


def load(path: Path) -> Rows:
    numbers = dict(calls=int, bytes=int, ms=float)
    return [{key: numbers.get(key, str)(value) for key, value in row.items()} for row in read_rows(path)]


def table_of_times(times: Rows) -> str:
    """Return Markdown: the median step of every side, and its ratio to the synchronised step."""
    from projects.statistics_sharing.cases import SIDES

    cases = list(dict.fromkeys(row['case'] for row in times))
    lines = [f'| median step (ms) | {" | ".join(cases)} |', f'| --- |{" ---: |" * len(cases)}']
    medians = {
        (case, side): median(row['ms'] for row in times if (row['case'], row['side']) == (case, side))
        for case in cases
        for side in SIDES
    }
    for side, title in SIDES.items():
        lines.append(f'| {title} | {" | ".join(f"{medians[case, side]:,.0f}" for case in cases)} |')
    for ours, theirs in (('bcn', 'bn-sync'), ('bcn-ws', 'bn-sync'), ('bcn-ws', 'bcn-ws-sync'), ('bn-sync', 'bn')):
        ratios = ' | '.join(f'{medians[case, ours] / medians[case, theirs]:.2f}' for case in cases)
        lines.append(f'| `{ours}` / `{theirs}` | {ratios} |')
    reached = sum(medians[case, 'bcn-ws'] <= GOAL * medians[case, SYNCHRONISED] for case in cases)
    rounds = len(times) // len(medians)
    return '\n'.join(lines) + (
        f'\n\nMedians of {rounds} rounds in turns, the slower of {RANKS} ranks with one thread each. Goal: BCN + '
        f'WS takes at most {GOAL} of the time of BN synchronised in every pass; reached in {reached} of {len(cases)} '
        'cases.\n'
    )


def table_of_messages(sent: Rows) -> str:
    """Return Markdown: what each side sends for its statistics in one step, beside the gradients."""
    from projects.statistics_sharing.cases import SIDES

    lines = [
        '| model | statistics | all-gathers | all-reduces | MB sent | gradients, MB |',
        '| --- | --- |' + ' ---: |' * 4,
    ]
    for case in dict.fromkeys(row['case'] for row in sent):
        for side, title in SIDES.items():
            mine = [row for row in sent if (row['case'], row['side']) == (case, side)]
            statistics = [row for row in mine if row['part'] == 'statistics']
            calls = [
                sum(row['calls'] for row in statistics if row['kind'] == kind) for kind in ('all_gather', 'all_reduce')
            ]
            size, gradients = (
                sum(row['bytes'] for row in rows) / 1e6
                for rows in (statistics, [row for row in mine if row['part'] == 'gradients'])
            )
            lines.append(f'| {case} | {title} | {calls[0]} | {calls[1]} | {size:.2f} | {gradients:.0f} |')
    return '\n'.join(lines) + '\n'


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='a tiny model, to see that it runs')
    parser.add_argument('--only', choices=['messages', 'times', 'tables'], help='do one part (default: all)')
    parser.add_argument('--rounds', type=int, default=5, help='number of timed steps of every side (default: 5)')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'statistics_sharing')
    args = parser.parse_args(arguments)
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    folder = args.work_dir if args.quick else HERE / 'results'
    if args.only != 'tables':
        import torch.multiprocessing

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            settings = args.quick, 2 if args.quick else args.rounds, args.only or 'both'
            torch.multiprocessing.spawn(worker, (temporary, *settings), nprocs=RANKS)
            for file in Path(temporary).glob('*.csv'):
                (folder / file.name).write_text(file.read_text())
    if args.only in ('messages', 'times'):
        return 0
    sent, times = load(folder / 'collectives.csv'), load(folder / 'steps.csv')
    tables = dict(times=table_of_times(times), messages=table_of_messages(sent))
    if not args.quick:
        for name, text in tables.items():
            for path in (HERE / 'README.md', DECISION):
                write_table(path, name, text)
    print('\n'.join(tables.values()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
