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
    from wsbcn_mm.engine.data.preparation import exit_code_of
    from wsbcn_mm.segmentation.data.prepare_cityscapes import prepare_cityscapes

    return exit_code_of(prepare_cityscapes, args.root)


if __name__ == '__main__':
    sys.exit(main())
