"""Fold a checkpoint and export it: python tools/export.py RECIPE CHECKPOINT --to onnx --check-sizes 512x1024 769x769

The file takes pixels from 0 to 255, (N, 3, H, W) or (N, 3, T, H, W), of which only the 3 is fixed, and gives logits;
normalisation is inside. It is compared with the checkpoint's model on random input of each size; what was found is
printed, and written beside the file as JSON.
"""

import argparse
import importlib
import os
import re
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--to', choices=['onnx', 'torch_export'], default='onnx')
    parser.add_argument('--out', help='file to write (default: the name of the checkpoint, in the work dir)')
    parser.add_argument(
        '--check-sizes', nargs='+', metavar='SIZE', help='HxW, for video TxHxW; the export traces the first'
    )
    parser.add_argument('--check-input', metavar='FILE', help='compare on this input too: an array of pixels, .npy')
    parser.add_argument('--evaluate', action='store_true', help="evaluate before and after on the recipe's test data")
    parser.add_argument('--int8', action='store_true', help='also quantise the ONNX file, and evaluate all three')
    parser.add_argument('--work-dir', help='where logs and files go (default: work_dirs/<recipe name>)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    args = parser.parse_args()
    if args.int8 and args.to != 'onnx':
        parser.error(f'--int8 quantises ONNX files, not --to {args.to}')
    return args


def main() -> None:
    args = parse_args()
    # Before torch is imported: OpenMP threads that wait by spinning make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    import torch

    from wsbcn_mm.engine import export as exporting
    from wsbcn_mm.engine.export import load_pixels, require_onnx
    from wsbcn_mm.engine.inference.source import facts_for_inference
    from wsbcn_mm.engine.recipe.load import load_checkpoint_into, load_recipe
    from wsbcn_mm.engine.recipe.task import task_of
    from wsbcn_mm.surgery.export import SUFFIXES

    cfg = load_recipe(args.config, work_dir=args.work_dir, options=args.cfg_options)
    load_checkpoint_into(cfg, args.checkpoint)
    deployment = importlib.import_module(f'wsbcn_mm.{task_of(cfg)}.models.deployment')
    sizes = [parse_size(text, len(deployment.AXES) - 1) for text in args.check_sizes or deployment.CHECK_SIZES]
    inputs = [load_pixels(args.check_input, 2 + len(sizes[0]))] if args.check_input else []
    inputs += [255 * torch.rand(batch, 3, *size) for size in sizes for batch in (1, 3)]
    example = 255 * torch.rand(2, 3, *sizes[0])
    if args.to == 'onnx':
        require_onnx()

    out = Path(args.out or Path(cfg.work_dir) / f'{Path(args.checkpoint).stem}{SUFFIXES[args.to]}')
    done = exporting.export_checkpoint(
        cfg,
        args.checkpoint,
        deployment,
        out,
        to=args.to,
        inputs=inputs,
        example=example,
        int8=args.int8,
        evaluate=args.evaluate,
    )
    axes = list(deployment.AXES.values())
    report = out.with_suffix('.json')
    facts = facts_for_inference(cfg, args.checkpoint)
    exporting.write_report(done, report, recipe=args.config, checkpoint=args.checkpoint, free_axes=axes, **facts)
    print(done.folding)
    for name, file in done.files.items():
        print(f'{name}: {file}, {file.stat().st_size / 2**20:.1f} MiB', *done.comparisons[name], sep='\n')
    for name, values in done.metrics.items():
        changes = ((key, value, value - done.metrics['checkpoint'][key]) for key, value in values.items())
        print(f'{name}: {", ".join(f"{key} {value:.2f} ({change:+.2f})" for key, value, change in changes)}')
    unfit = exporting.excess(done, args.to)
    if unfit:
        sys.exit(unfit)


def parse_size(text: str, rank: int) -> list[int]:
    """'64x96' -> [64, 96]."""
    if not re.fullmatch('x'.join(['[1-9][0-9]*'] * rank), text):
        raise ValueError(f'--check-sizes {text!r} is not of the form {"HxW" if rank == 2 else "TxHxW"}')
    return [int(length) for length in text.split('x')]


if __name__ == '__main__':
    main()
