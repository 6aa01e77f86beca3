"""Prepare and check Cityscapes: python tools/data/prepare_cityscapes.py data/cityscapes

The folder holds the downloads, leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or what was unpacked of them.
Unpacks, pairs images with labels, counts them and all label values, and writes manifest.json there. May be run again at
any time. Exits with 1 if something is missing or wrong.
"""

import argparse
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', nargs='?', type=Path, default=Path('data/cityscapes'), help='default: data/cityscapes')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from rich.console import Console

    from wsbcn_mm.segmentation.prepare_cityscapes import prepare_cityscapes

    console = Console()
    try:
        problems = prepare_cityscapes(args.root, console)
    except (OSError, ValueError) as error:
        console.print(f'{type(error).__name__}: {error}', highlight=False, markup=False, soft_wrap=True)
        return 1
    console.print('not complete' if problems else 'complete', highlight=False)
    return int(bool(problems))


if __name__ == '__main__':
    sys.exit(main())
