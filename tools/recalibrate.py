"""Recompute a checkpoint's running statistics: python tools/recalibrate.py RECIPE CHECKPOINT OUT

This is for networks that train well and evaluate badly: BatchNorm at one or two samples, averaged weights, or estimates
that moved too fast. OUT has the same weights, with statistics measured on --samples training samples. The table shows
how far the old statistics were off (docs/statistics.md). Repeating it changes nothing.
"""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', help='checkpoint to write, .pth or .safetensors; it must not exist')
    parser.add_argument('--samples', type=int, default=200, help='number of training samples (default: 200)')
    parser.add_argument('--sweeps', type=int, default=3, help='passes over the samples; more are closer (default: 3)')
    parser.add_argument('--rows', type=int, default=20, help='norms in the table, largest gaps first (default: 20)')
    parser.add_argument('--work-dir', help='folder for logs (default: work_dirs/<recipe name>)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before the import of torch: spinning OpenMP threads make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from wsbcn_mm.diagnostics.statistics_gap import table_of
    from wsbcn_mm.engine.recipe.load import load_checkpoint_into, load_recipe
    from wsbcn_mm.engine.statistics.recalibration import recalibrate

    try:
        cfg = load_recipe(args.config, work_dir=args.work_dir, options=args.cfg_options)
        load_checkpoint_into(cfg, args.checkpoint)
        done = recalibrate(cfg, args.checkpoint, args.out, samples=args.samples, sweeps=args.sweeps)
    except (OSError, ValueError) as error:
        sys.exit(f'not recalibrated: {error}')
    print(table_of(done.gaps, args.rows))
    found = done.calibration
    print(
        f'{len(found.statistics)} norms measured, {len(found.unreached)} received no input and are unchanged'
        f'{": " if found.unreached else ""}{", ".join(found.unreached)}; the last sweep moved their means by up to '
        f'{found.change:.1e} standard deviations'
    )
    if done.left_out:
        print(f'left out of the new file, which is for evaluation: {", ".join(done.left_out)}')
    print(f'-> {args.out}')


if __name__ == '__main__':
    main()
