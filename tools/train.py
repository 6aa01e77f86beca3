"""Train a recipe: python tools/train.py configs/deeplabv3/<name>.py, see README.md for the names."""

import argparse
import os
from pathlib import Path

NORMS = Path(__file__).resolve().parents[1] / 'configs' / '_base_' / 'norms'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<recipe name>)')
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
        help='samples per optimizer step, whatever the number of devices: accumulates what they cannot hold',
    )
    parser.add_argument('--per-device', type=int, metavar='N', help='samples per forward pass on each device')
    parser.add_argument(
        '--amp',
        nargs='?',
        const='best',
        choices=['bf16', 'fp16'],
        help='automatic mixed precision; alone, bfloat16 where the device computes in it (after the recipe file)',
    )
    parser.add_argument(
        '--launcher',
        choices=['auto', 'none', 'pytorch', 'slurm'],
        default='auto',
        help='what starts the processes (default: as the environment tells, python, torchrun or srun)',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe, e.g. randomness.seed=1'
    )
    parser.add_argument(
        '--print-config',
        action='store_true',
        help='print what would be trained, and what of it is not as in the recipe',
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
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from mmengine.runner import Runner

    from wsbcn_mm.engine.launch.launch import prepare_launch
    from wsbcn_mm.engine.launch.unused_parameters import refuse_unused_parameters
    from wsbcn_mm.engine.memory.out_of_memory import explaining_out_of_memory
    from wsbcn_mm.engine.recipe import load as recipe
    from wsbcn_mm.engine.recipe.batch_plan import world_size
    from wsbcn_mm.engine.recipe.norms import check_layer_configs, switch_norm
    from wsbcn_mm.engine.recipe.precision import use_amp
    from wsbcn_mm.engine.resume.order import seed_samples
    from wsbcn_mm.engine.resume.position import plan_batch_as_before

    cfg = recipe.load_recipe(args.config, work_dir=args.work_dir, options=args.cfg_options)
    check_layer_configs(cfg)
    said = []
    if args.norm:
        said += switch_norm(cfg, args.norm, NORMS, num_groups=args.norm_groups)
        if not args.work_dir:
            cfg.work_dir += f'_{args.norm}'
    recipe.resume_from(cfg, args.resume)
    if args.from_scratch:
        recipe.drop_pretrained(cfg)
    if args.amp:
        said += use_amp(cfg, None if args.amp == 'best' else args.amp)
    recipe.check_recipe(cfg)
    said += recipe.add_guards(cfg)
    prepare_launch(cfg, args.launcher, local_rank=args.local_rank)
    said += plan_batch_as_before(cfg, world_size(cfg), global_batch=args.global_batch, per_device=args.per_device)
    seed_samples(cfg)
    if said and os.environ.get('RANK', '0') == '0':
        print('\n'.join(said))
    if args.print_config:
        print(cfg.pretty_text, recipe.changes_of(cfg, args.config), sep='\n')
        return
    refuse_unused_parameters(cfg)
    with explaining_out_of_memory(cfg, args.config):
        Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
