"""Prepare and check Cityscapes: python tools/data/prepare_cityscapes.py data/cityscapes

The folder has the downloads, leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or their unpacked contents. The
archives are unpacked, images are paired with labels, and images and label values are counted. The results are written
to manifest.json in the folder. The command can be repeated at any time. The exit code is 1 if anything is missing or
wrong.
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
