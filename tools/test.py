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
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from mmengine.dist import is_main_process
    from mmengine.runner import Runner

    from wsbcn_mm.engine.launch.launch import prepare_launch
    from wsbcn_mm.engine.memory.out_of_memory import explaining_out_of_memory
    from wsbcn_mm.engine.recipe import load as recipe

    cfg = recipe.load_recipe(args.config, work_dir=args.work_dir, options=args.cfg_options)
    recipe.load_checkpoint_into(cfg, args.checkpoint)
    if args.format_only:
        recipe.require_segmentation(cfg, '--format-only')
        from wsbcn_mm.segmentation.evaluation.predictions import save_predictions_only

        save_predictions_only(cfg, args.format_only)
    if args.sliding_window:
        recipe.require_segmentation(cfg, '--sliding-window')
        from wsbcn_mm.segmentation.evaluation.tta import use_sliding_window, window_side

        use_sliding_window(cfg, *map(window_side, args.sliding_window))
    if args.tta is not None:
        recipe.require_segmentation(cfg, '--tta')
        from wsbcn_mm.segmentation.evaluation.tta import SCALES, use_tta

        use_tta(cfg, args.tta or SCALES)
    if args.show_dir:
        recipe.save_pictures(cfg, args.show_dir, args.show_max)
    prepare_launch(cfg, args.launcher, local_rank=args.local_rank)
    runner = Runner.from_cfg(cfg)
    # The data come first, as the guards compare the checkpoint with them. The Runner itself would only warn of weights
    # that the checkpoint lacks, and evaluate random ones.
    _ = runner.test_dataloader
    runner.load_checkpoint(args.checkpoint, strict=True)
    with explaining_out_of_memory(cfg, args.config):
        metrics = runner.test()
    if is_main_process():
        file = Path(args.format_only or Path(cfg.work_dir) / metrics_name(args.tta is not None, args.sliding_window))
        if not args.format_only:
            file.write_text(json.dumps(metrics, indent=2, default=float) + '\n')
        print(f'{", ".join(f"{name} {value:.2f}" for name, value in metrics.items())} -> {file}')


def metrics_name(tta: bool, sliding_window) -> str:
    """A file for each way of testing: the numbers of one must not be taken for those of another."""
    return f'metrics{"-tta" * tta}{"-sliding-window" * bool(sliding_window)}.json'


if __name__ == '__main__':
    main()
