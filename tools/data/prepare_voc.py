"""Prepare and check Pascal VOC 2012 with the labels of SBD: python tools/data/prepare_voc.py data

The folder holds the downloads, VOCtrainval_11-May-2012.tar and benchmark.tgz, or what was unpacked of them (VOCdevkit/,
benchmark_RELEASE/). Unpacks, converts SBD's .mat files to PNG, counts images and all label values, and writes
VOCdevkit/VOC2012/manifest.json. May be run again at any time. Exits with 1 if something is missing or wrong.
"""

import argparse
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', nargs='?', type=Path, default=Path('data'), help='default: data')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from wsbcn_mm.engine.data.preparation import exit_code_of
    from wsbcn_mm.segmentation.data.prepare_voc import prepare_voc

    return exit_code_of(prepare_voc, args.root)


if __name__ == '__main__':
    sys.exit(main())
