"""Prepare and check Pascal VOC 2012 with the labels of SBD: python tools/data/prepare_voc.py data

The folder has the downloads, VOCtrainval_11-May-2012.tar and benchmark.tgz, or their unpacked contents (VOCdevkit/,
benchmark_RELEASE/). The archives are unpacked, SBD's .mat files are converted to PNG, images and label values are
counted, and VOCdevkit/VOC2012/manifest.json is written. The command can be repeated at any time. The exit code is 1 if
anything is missing or wrong.
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
