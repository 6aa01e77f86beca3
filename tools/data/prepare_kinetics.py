"""Prepare and check Kinetics-400: python tools/data/prepare_kinetics.py data/kinetics400

The folder holds CVDF's download (train/part_*.tar.gz, val/..., annotations/train.csv and val.csv, or what was unpacked
of it), or a folder of videos for each class below videos_train/ and videos_val/, or mmaction2's lists and their videos.
Unpacks, writes class list and lists where there are none, decodes every video to its end, and writes manifest.csv.
May be run again at any time, and goes on where it was interrupted. Exits with 1 if something is missing or wrong.
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
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1, help='videos decoded at a time')
    parser.add_argument('--deadline', type=float, default=60, help='seconds for a video (default: 60)')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from wsbcn_mm.engine.data.preparation import exit_code_of
    from wsbcn_mm.video.data.prepare_kinetics import prepare_kinetics

    prepare = partial(prepare_kinetics, processes=args.processes, deadline=args.deadline)
    return exit_code_of(prepare, args.root)


if __name__ == '__main__':
    sys.exit(main())
