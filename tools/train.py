"""Train a recipe: python tools/train.py configs/deeplabv3/<name>.py, see configs/README.md for the names."""

import argparse
import os


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: work_dirs/<recipe name>)')
    parser.add_argument(
        '--resume', nargs='?', const='auto', help='continue from this checkpoint, or from the last one in the work dir'
    )
    parser.add_argument('--from-scratch', action='store_true', help='start from random instead of pretrained weights')
    parser.add_argument(
        '--norm', metavar='NAME', help="train with another norm than the recipe's: bn, gn-ws, bcn-ws-backbone, ..."
    )
    parser.add_argument('--norm-groups', type=int, metavar='G', help='groups of channels of that norm')
    parser.add_argument(
        '--global-batch',
        type=int,
        metavar='N',
        help='samples per optimizer step, for any number of devices: accumulates what they cannot hold',
    )
    parser.add_argument('--per-device', type=int, metavar='N', help='samples per forward pass on each device')
    parser.add_argument(
        '--amp',
        nargs='?',
        const='best',
        choices=['bf16', 'fp16'],
        help='automatic mixed precision; without a value, bfloat16 where the device computes in it (put it after the '
        'recipe file)',
    )
    parser.add_argument(
        '--launcher',
        choices=['auto', 'none', 'pytorch', 'slurm'],
        default='auto',
        help='what starts the processes: python, torchrun or srun (default: read from the environment)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe, e.g. randomness.seed=1'
    )
    parser.add_argument(
        '--print-config', action='store_true', help='print the resolved config and its changes, and do not train'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.norm_groups and not args.norm:
        parser.error('--norm-groups goes with --norm')
    return args


def main() -> None:
    args = parse_args()
    # Before torch is imported: OpenMP threads that wait by spinning make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.run import train

    train(
        args.config,
        options=args.cfg_options,
        work_dir=args.work_dir,
        norm=args.norm,
        norm_groups=args.norm_groups,
        resume=args.resume,
        from_scratch=args.from_scratch,
        amp=args.amp,
        launcher=args.launcher,
        local_rank=args.local_rank,
        global_batch=args.global_batch,
        per_device=args.per_device,
        print_config=args.print_config,
    )


if __name__ == '__main__':
    main()
