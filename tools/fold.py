"""Fold a segmentation checkpoint for mmseg without this package: python tools/fold.py RECIPE CHECKPOINT

Write `folded.py`, `folded.pth` and, if folded norms add biases, `folded_segmentor.py` to one folder. With the folder on
PYTHONPATH, `mmseg.apis.init_model('folded.py', 'folded.pth')` runs them wherever mmseg is installed.
"""

import argparse
import os
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', help='folder for the files (default: folded/ in the work dir)')
    parser.add_argument('--work-dir', help='folder for logs (default: work_dirs/<recipe name>)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before the import of torch: spinning OpenMP threads make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    import torch
    from mmengine.runner import Runner

    from wsbcn_mm.engine.recipe.load import load_checkpoint_into, load_recipe
    from wsbcn_mm.engine.recipe.task import task_of

    cfg = load_recipe(args.config, work_dir=args.work_dir, options=args.cfg_options)
    load_checkpoint_into(cfg, args.checkpoint)
    if task_of(cfg) != 'segmentation':
        raise ValueError(
            f'{args.config}: a segmentation recipe is expected, because the files are for mmseg; tools/export.py folds '
            'and exports models of both tasks'
        )
    from wsbcn_mm.segmentation.models.folding import fold_for_mmseg

    runner = Runner.from_cfg(cfg)
    checkpoint = runner.load_checkpoint(args.checkpoint, strict=True)
    meta = {name: value for name, value in checkpoint.get('meta', {}).items() if name == 'dataset_meta'}
    folder = Path(args.out_dir or Path(cfg.work_dir) / 'folded')
    print(fold_for_mmseg(cfg, runner.model.cpu().eval(), meta, 255 * torch.rand(1, 3, 64, 96), folder))
    print(f'-> {", ".join(sorted(str(file) for file in folder.iterdir()))}')


if __name__ == '__main__':
    main()
