"""The command line of a study on the toy scenes: train, evaluate, write results and the README's table."""

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from projects.common.csv_rows import write_rows
from projects.common.readme_tables import write_table

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]


def run_study(
    arguments: Sequence[str] | None,
    here: Path,
    *,
    description: str,
    seeds: int,
    columns: Sequence[str],
    study: Callable[[Path, Path, int, bool], Rows],
    table: Callable[[Rows], str],
) -> int:
    """Run a study at full size, or on a few scenes with `--quick`, which writes only into the work folder.

    Args:
        arguments: Command-line arguments; None for those of the process.
        here: Folder of the study, with README.md and results/.
        description: What the study asks.
        seeds: Default number of seeds.
        columns: Columns of results.csv.
        study: (folder of the scenes, work folder, number of seeds, whether quick) -> rows.
        table: Rows -> Markdown.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--quick', action='store_true', help='a few iterations on a few scenes, to see that it runs')
    parser.add_argument('--seeds', type=int, default=seeds, help=f'number of seeds (default: {seeds})')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / here.name, help='emptied first')
    args = parser.parse_args(arguments)
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from projects.toy_data.data import SCENES, build_segmentation

    shutil.rmtree(args.work_dir, ignore_errors=True)
    if args.quick:
        data_root = build_segmentation(args.work_dir / 'data', **{**SCENES, 'n_train': 20, 'n_val': 4})
        rows = study(data_root, args.work_dir, 1, True)
        write_rows(args.work_dir / 'results.csv', columns, rows)
    else:
        data_root = build_segmentation(ROOT / 'data' / 'micro_batch_demo', **SCENES)
        rows = study(data_root, args.work_dir, args.seeds, False)
        write_rows(here / 'results' / 'results.csv', columns, rows)
        write_table(here / 'README.md', 'table', table(rows))
    print(table(rows))
    return 0
