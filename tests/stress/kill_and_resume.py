"""Kill training at random moments, resume it, and compare the result with that of an uninterrupted run.

python -m tests.stress.kill_and_resume               56 kills: both tasks, 0 and 2 loader workers, 1 and 2 processes
python -m tests.stress.kill_and_resume --task video --workers 2 --processes 1 --kills 3
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projects.common.csv_rows import read_rows, write_rows

if TYPE_CHECKING:
    from .runs import Case

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COLUMNS = (
    *('task', 'workers', 'processes', 'kill', 'moment', 'seconds', 'iteration', 'resumed_from', 'mid_accumulation'),
    *('values', 'different'),
)


MOMENTS = ('any', 'training', 'saving', 'training', 'training', 'saving', 'training')
"""Moments of the kills, in turn: at any time of the process, after the first iteration, or during the write of a
checkpoint."""


def kill_and_compare(case: Case, data: Path, folder: Path, kills: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield one row per kill, at a random moment of the kind in `MOMENTS`."""
    from . import runs

    shutil.rmtree(folder, ignore_errors=True)
    start = time.monotonic()
    whole = runs.Started(case, data, folder / 'whole')
    whole.wait_until(lambda: whole.done.value > 0)
    first_iteration = time.monotonic() - start
    whole.finish()
    duration = time.monotonic() - start
    expected = runs.last_checkpoint(folder / 'whole')
    moments = random.Random(f'{case} {seed}')
    kill = 0
    while kill < kills:
        work_dir, moment = folder / f'kill{kill}', MOMENTS[kill % len(MOMENTS)]
        start = time.monotonic()
        run = runs.Started(case, data, work_dir)
        alive = moment == 'any' or run.wait_until(lambda run=run: run.done.value > 0)
        until = time.monotonic() + moments.uniform(0, duration if moment == 'any' else duration - first_iteration)
        alive = alive and run.wait_until(lambda until=until: time.monotonic() > until)
        alive = alive and (moment != 'saving' or run.wait_until(run.writing))
        seconds = time.monotonic() - start
        iteration = run.kill()
        if alive:
            begin = runs.resumed_from(work_dir)
            runs.Started(case, data, work_dir).finish()
            values, different = runs.differences(expected, runs.last_checkpoint(work_dir))
            if different:
                print(f'{case}, kill {kill} at {iteration}: {different[:5]}', file=sys.stderr)
            yield dict(
                **dict(task=case.task, workers=case.workers, processes=case.processes, kill=kill, moment=moment),
                **dict(seconds=round(seconds, 2), iteration=iteration, resumed_from=begin),
                **dict(mid_accumulation=int(begin % runs.ACCUMULATION > 0), values=values, different=len(different)),
            )
            kill += 1
        shutil.rmtree(work_dir, ignore_errors=True)


def build_data(root: Path) -> Path:
    """Build a few scenes and clips of the toy data."""
    from io import StringIO

    from rich.console import Console

    from projects.toy_data import data
    from projects.toy_data.data import CLIPS, SCENES

    few = dict(n_train=12, n_val=2, console=Console(file=StringIO()))
    data.build_segmentation(root, **(SCENES | few))
    data.build_video(root, **(CLIPS | few))
    return root


def save(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows in place of the file's rows of the same case; rows of other cases stay."""
    of_case = {tuple(str(row[name]) for name in COLUMNS[:3]) for row in rows}
    kept = read_rows(path) if path.is_file() else []
    kept = [row for row in kept if tuple(row[name] for name in COLUMNS[:3]) not in of_case]
    together = sorted([*kept, *rows], key=lambda row: (*(str(row[name]) for name in COLUMNS[:3]), int(row['kill'])))
    write_rows(path, COLUMNS, together)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Kill training at random moments, resume it, compare bit by bit')
    parser.add_argument('--task', choices=['segmentation', 'video'], help='default: both')
    parser.add_argument('--workers', type=int, help='loader workers of each process (default: 0, then 2)')
    parser.add_argument('--processes', type=int, help='default: 1, then 2')
    parser.add_argument('--kills', type=int, default=7, help='kills of each case (default: 7)')
    parser.add_argument('--iterations', type=int, default=20, help='iterations of each run (default: 20)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments')
    parser.add_argument('--results', type=Path, default=HERE / 'results' / 'kills.csv')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'kill_and_resume')
    args = parser.parse_args(arguments)
    os.environ |= dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    from .runs import Case

    cases = [
        Case(task, workers, processes, args.iterations)
        for task in ([args.task] if args.task else ['segmentation', 'video'])
        for workers in ([args.workers] if args.workers is not None else [0, 2])
        for processes in ([args.processes] if args.processes else [1, 2])
    ]
    data, rows = build_data(args.work_dir / 'data'), []
    for case in cases:
        of_case = []
        for row in kill_and_compare(case, data, args.work_dir / 'runs', args.kills, args.seed):
            of_case.append(row)
            print(
                f'{case}: killed ({row["moment"]}) at iteration {row["iteration"]}, resumed from '
                f'{row["resumed_from"]}: {row["different"]} of {row["values"]} values differ',
                flush=True,
            )
        save(of_case, args.results)
        rows += of_case
    return int(any(row['different'] for row in rows))


if __name__ == '__main__':
    sys.exit(main())
