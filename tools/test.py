"""Evaluate a checkpoint: python tools/test.py RECIPE CHECKPOINT --show-dir overlays

Segmentation prints mIoU and a table per class, video top-1, top-5 and mean-class accuracy. The metrics are written as
JSON beside the log, tables per class and the confusion matrix in its folder `evaluation`. Segmentation can be tested on
several scales and their mirror images (--tta) and on windows (--sliding-window 769 513), each with a JSON of its
own. With --format-only a segmentation recipe writes its predictions for a test server instead, and no metrics:
--format-only predictions --cfg-options test_dataloader.dataset.split=test
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='where logs and metrics go (default: work_dirs/<recipe name>)')
    parser.add_argument('--show-dir', help='save pictures of predictions beside the truth in this folder')
    parser.add_argument('--show-max', type=int, default=20, help='number of pictures (default: 20)')
    parser.add_argument(
        '--tta',
        nargs='*',
        type=float,
        metavar='SCALE',
        help='average over these sizes, each with its mirror image (default: 0.5 0.75 1 1.25 1.5 1.75)',
    )
    parser.add_argument(
        '--sliding-window',
        nargs=2,
        metavar=('CROP', 'STRIDE'),
        help='average over windows; each N or HEIGHTxWIDTH',
    )
    parser.add_argument('--format-only', metavar='DIR', help='write predictions as label files here, evaluate nothing')
    parser.add_argument(
        '--launcher',
        choices=['auto', 'none', 'pytorch', 'slurm'],
        default='auto',
        help='what starts the processes (default: as the environment tells, python, torchrun or srun)',
    )
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before torch is imported: OpenMP threads that wait by spinning make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.run import evaluate, is_main_process

    metrics, cfg = evaluate(
        args.config,
        args.checkpoint,
        options=args.cfg_options,
        work_dir=args.work_dir,
        change=partial(change_test, args=args),
        show_dir=args.show_dir,
        show_max=args.show_max,
        launcher=args.launcher,
        local_rank=args.local_rank,
    )
    if is_main_process():
        file = Path(args.format_only or Path(cfg.work_dir) / metrics_name(args.tta is not None, args.sliding_window))
        if not args.format_only:
            file.write_text(json.dumps(metrics, indent=2, default=float) + '\n')
        print(f'{", ".join(f"{name} {value:.2f}" for name, value in metrics.items())} -> {file}')


def change_test(cfg, args: argparse.Namespace) -> None:
    """Change a segmentation recipe's test as the options ask; they are rejected for a recipe of another task."""
    from wsbcn_mm.engine.run import require_segmentation

    if args.format_only:
        require_segmentation(cfg, '--format-only')
        from wsbcn_mm.segmentation.evaluation.predictions import save_predictions_only

        save_predictions_only(cfg, args.format_only)
    if args.sliding_window:
        require_segmentation(cfg, '--sliding-window')
        from wsbcn_mm.segmentation.evaluation.tta import use_sliding_window, window_side

        use_sliding_window(cfg, *map(window_side, args.sliding_window))
    if args.tta is not None:
        require_segmentation(cfg, '--tta')
        from wsbcn_mm.segmentation.evaluation.tta import SCALES, use_tta

        use_tta(cfg, args.tta or SCALES)


def metrics_name(tta: bool, sliding_window) -> str:
    """A file for each way of testing: the numbers of one must not be taken for those of another."""
    return f'metrics{"-tta" * tta}{"-sliding-window" * bool(sliding_window)}.json'


if __name__ == '__main__':
    main()
