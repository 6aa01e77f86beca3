"""What does the model see? python tools/browse_dataset.py RECIPE --out work_dirs/sheets --number 16

Save sheets of a recipe's samples as PNG, after loading, augmentation and the model's preprocessor, with its
normalisation undone. Images are shown beside their labels, with a legend of the classes and ignored pixels in white.
Clips are rows of frames under their class.
"""

import argparse
import os
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('--out', required=True, type=Path, metavar='DIR', help='folder for the sheets')
    parser.add_argument('--number', type=int, default=16, metavar='N', help='samples, 16 per sheet (default: 16)')
    parser.add_argument('--split', choices=['train', 'val'], default='train', help='default: train')
    parser.add_argument('--seed', type=int, default=0, help='seed of selection and augmentation (default: 0)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before the import of torch: spinning OpenMP threads make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from wsbcn_mm.engine.data.browsing import browse
    from wsbcn_mm.engine.recipe.load import load_recipe

    try:
        cfg = load_recipe(args.config, options=args.cfg_options)
        for file in browse(cfg, drawing_of(cfg), args.split, args.number, args.out, args.seed):
            print(file)
    except (OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}; docs/data.md lists the files of each dataset and their folders')


def drawing_of(cfg):
    """Return the module that draws samples of a recipe's task."""
    from importlib import import_module

    from wsbcn_mm.engine.recipe.task import task_of

    return import_module(f'wsbcn_mm.{task_of(cfg)}.evaluation.browsing')


if __name__ == '__main__':
    main()
