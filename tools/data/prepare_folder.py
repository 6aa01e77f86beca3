"""Check your own images or videos: python tools/data/prepare_folder.py data/my_folder

Segmentation: images/ and masks/, undivided, or with train/ and val/, or with lists train.txt and val.txt; classes.txt.
Video: a folder of videos for each class, undivided or below train/ and val/, or a CSV with the columns path,label and,
if you like, split and source. docs/own_images.md and docs/own_videos.md show both.
Prints what the folder has and what does not fit, makes a split where there is none, keeps it in train.txt and val.txt
or in split.csv, and writes a manifest. May be run again at any time. Exits with 1 if something is missing or wrong.
"""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path, metavar='FOLDER', help='folder of the data set')
    parser.add_argument('--val-share', type=float, metavar='SHARE', help='of the samples to validate (default: 0.2)')
    parser.add_argument('--test-share', type=float, metavar='SHARE', help='of the samples to test (default: 0)')
    parser.add_argument('--seed', type=int, help='of the split (default: 0)')
    parser.add_argument(
        '--group-by',
        metavar='REGEX',
        help='what names of samples from one source have in common, such as "^(.+)_[0-9]+$": they stay in one split',
    )
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1, help='files read at a time')
    parser.add_argument('--deadline', type=float, default=60, help='seconds for a video (default: 60)')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from wsbcn_mm.engine.data.preparation import exit_code_of

    return exit_code_of(lambda root, console: prepare(root, console, args), args.root)


def prepare(root: Path, console, args: argparse.Namespace) -> list[str]:
    from wsbcn_mm.engine.data.folder_task import task_of_folder

    task = task_of_folder(root)
    options = dict(val_share=args.val_share, test_share=args.test_share, seed=args.seed, group_by=args.group_by)
    if task == 'video':
        options |= dict(deadline=args.deadline)
    module = import_module(f'wsbcn_mm.{task}.data.prepare_folder')
    return getattr(module, f'prepare_{task}_folder')(root, console, processes=args.processes, **options)


if __name__ == '__main__':
    sys.exit(main())
