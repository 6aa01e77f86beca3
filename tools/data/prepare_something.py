"""Prepare and check Something-Something: python tools/data/prepare_something.py v2 data/sthv2

The folder holds the downloads, 20bn-something-something-v2-00, -01 and so on with the four lists of labels, train,
validation and test, or what was unpacked of them. Unpacks, decodes every clip, compares with the published counts, and
writes manifest.csv there. May be run again at any time, and goes on where it was interrupted. Exits with 1 if something
is missing or wrong.
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
    parser.add_argument('--suffix', help='of the videos of v2, where they were converted, such as .mp4')
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1, help='clips decoded at a time')
    parser.add_argument('--deadline', type=float, default=60, help='seconds for a clip (default: 60)')
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
