"""Prepare and check Something-Something: python tools/data/prepare_something.py v2 data/sthv2

The folder has the downloads, 20bn-something-something-v2-00, -01 and so on with the four lists of labels, train,
validation and test, or their unpacked contents. The archives are unpacked, every clip is decoded, counts are compared
with the published ones, and manifest.csv is written. The command can be repeated at any time, and continues where it
was interrupted. The exit code is 1 if anything is missing or wrong.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('version', choices=['v1', 'v2'])
    parser.add_argument('root', nargs='?', type=Path, help='default: data/sthv1 or data/sthv2')
    parser.add_argument('--suffix', help='suffix of the videos of v2 if they were converted, such as .mp4')
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1, help='clips decoded at the same time')
    parser.add_argument('--deadline', type=float, default=60, help='seconds per clip (default: 60)')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from wsbcn_mm.engine.data.preparation import exit_code_of
    from wsbcn_mm.video.data.prepare_something import prepare_something

    options = dict(suffix=args.suffix, processes=args.processes, deadline=args.deadline)
    prepare = partial(prepare_something, version=args.version, **options)
    return exit_code_of(prepare, args.root or Path(f'data/sth{args.version}'))


if __name__ == '__main__':
    sys.exit(main())
