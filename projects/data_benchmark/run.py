"""Measure the speed of the recipes' data pipelines beside the usual ones.

python -m projects.data_benchmark.run           writes results/ and the table in the README
python -m projects.data_benchmark.run --quick   a few samples, into work_dirs/, to see that it runs
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from projects.common.csv_rows import write_rows
from projects.common.provenance import commit_of, cpu_name
from projects.common.readme_tables import write_table

HERE = Path(__file__).parent
COLUMNS = ('comparison', 'side', 'round', 'samples', 'ms_per_sample', 'cpu', 'commit', 'date')
TITLES = {
    'clips': 'Kinetics: 32 of 300 frames of 340x256, crop of 224',
    'crops': 'Cityscapes: crop of 512x1024 of 2048x1024',
}


def measure(sides: Mapping[str, Callable[[int], Any]], samples: int, rounds: int) -> list[dict[str, Any]]:
    """Time the sides in interleaved rounds, A B C A B C, and return a row for every side and round.

    In a round all sides make the same samples from the same random numbers. Everything runs in one thread, as in a
    loader's worker.
    """
    import cv2
    import torch

    from wsbcn_mm.engine.resume.seeds import seed_all

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    rows = []
    for number in range(-1, rounds):
        for side, make in sides.items():
            start = time.perf_counter()
            for index in range(samples):
                seed_all(1000 * number + 5000 + index)
                make(index)
            milliseconds = 1000 * (time.perf_counter() - start) / samples
            if number >= 0:
                rows.append(dict(side=side, round=number, samples=samples, ms_per_sample=round(milliseconds, 3)))
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: the median milliseconds, and the median speed relative to the first side of each round."""
    lines = ['| | ms per sample | samples/s of a worker | speed |', '| --- | ---: | ---: | ---: |']
    for comparison in dict.fromkeys(row['comparison'] for row in rows):
        lines.append(f'| **{TITLES[comparison]}** | | | |')
        times: dict[str, list[float]] = {}
        for row in rows:
            if row['comparison'] == comparison:
                times.setdefault(row['side'], []).append(float(row['ms_per_sample']))
        first = next(iter(times.values()))
        for side, own in times.items():
            ratio = statistics.median(a / b for a, b in zip(first, own, strict=True))
            median = statistics.median(own)
            lines.append(f'| {side} | {median:.1f} | {1000 / median:.1f} | {ratio:.2f}x |')
    return '\n'.join(lines)


def report(rows: Sequence[Mapping[str, Any]], readme: Path) -> None:
    """Write the table, and where it was measured, between the README's marks."""
    where = f'Medians of {1 + max(int(row["round"]) for row in rows)} rounds, one thread of {rows[0]["cpu"]}, commit '
    where += ', '.join(dict.fromkeys(row['commit'] for row in rows))
    write_table(readme, 'table', f'{where}.\n\n{table(rows)}')


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=sorted(TITLES), help='run one comparison (default: both)')
    parser.add_argument('--samples', type=int, default=8, help='samples in each round (default: 8)')
    parser.add_argument('--rounds', type=int, default=15, help='default: 15')
    parser.add_argument('--quick', action='store_true', help='two short samples, one round')
    parser.add_argument(
        '--data',
        type=Path,
        default=HERE.parents[1] / 'data' / 'data_benchmark',
        help='data folder, built if missing',
    )
    parser.add_argument('--out', type=Path, help='folder of the results (default: results/, or work_dirs/ if --quick)')
    args = parser.parse_args(arguments)
    out = args.out or (HERE.parents[1] / 'work_dirs' / HERE.name if args.quick else HERE / 'results')
    samples, rounds = (2, 1) if args.quick else (args.samples, args.rounds)
    from projects.data_benchmark import data, sides

    about = dict(cpu=cpu_name(), commit=commit_of(), date=datetime.now(timezone.utc).isoformat(timespec='seconds'))
    rows: list[dict[str, Any]] = []
    for comparison in [args.only] if args.only else TITLES:
        if comparison == 'clips':
            root = data.build_kinetics(args.data / 'kinetics400', samples, 80 if args.quick else 300)
            made = sides.clip_sides(root)
        else:
            made = sides.crop_sides(data.build_cityscapes(args.data / 'cityscapes', samples))
        rows += [dict(comparison=comparison, **row, **about) for row in measure(made, samples, rounds)]
    write_rows(out / 'samples.csv', COLUMNS, rows)
    print(table(rows))
    if out == HERE / 'results':
        report(rows, HERE / 'README.md')
    return 0


if __name__ == '__main__':
    sys.exit(main())
