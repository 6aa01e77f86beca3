"""Prepare and check Kinetics-400: python tools/data/prepare_kinetics.py data/kinetics400

The folder has CVDF's download (train/part_*.tar.gz, val/..., annotations/train.csv and val.csv, or its unpacked
contents), or a folder of videos for each class below videos_train/ and videos_val/, or mmaction2's lists and their
videos. The archives are unpacked, missing lists and class list are written, every video is decoded completely, and
manifest.csv is written. The command can be repeated at any time, and continues where it was interrupted. The exit code
is 1 if anything is missing or wrong.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'root', nargs='?', type=Path, default=Path('data/kinetics400'), help='default: data/kinetics400'
    )
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1, help='videos decoded at the same time')
    parser.add_argument('--deadline', type=float, default=60, help='seconds per video (default: 60)')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from wsbcn_mm.engine.data.preparation import exit_code_of
    from wsbcn_mm.video.data.prepare_kinetics import prepare_kinetics

    prepare = partial(prepare_kinetics, processes=args.processes, deadline=args.deadline)
    return exit_code_of(prepare, args.root)


if __name__ == '__main__':
    sys.exit(main())
