"""Make another project's checkpoint one of a recipe's: python tools/convert_checkpoint.py FILE OUT RECIPE

Reads .pth, .safetensors and BiT's .npz; writes what the recipe's init_cfg starts from (.pth, or .safetensors by name),
with what the file was trained with, where it comes from and its SHA-256. Every entry that does not fit is named. The
file of a 2D network enters a 3D recipe as 2D weights by the recipe's names, which init_cfg type 'Inflated2d' inflates.
"""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='checkpoint to read')
    parser.add_argument('out', help='checkpoint to write; it must not exist')
    parser.add_argument('config', help='recipe whose model it is for')
    parser.add_argument('--part', choices=['backbone', 'model'], default='backbone', help='what to convert')
    parser.add_argument('--source', help='who wrote the file, where its keys do not show it (see docs/pretrained.md)')
    parser.add_argument('--allow-mismatch', action='store_true', help='take what fits from another norm or another WS')
    parser.add_argument('--trust', action='store_true', help='read a pickle that needs code, which can run anything')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before torch is imported: OpenMP threads that wait by spinning make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from wsbcn_mm.engine.checkpoint.conversion import convert_file
    from wsbcn_mm.engine.recipe.load import load_recipe
    from wsbcn_mm.engine.recipe.tree import drop_pretrained

    cfg = load_recipe(args.config, options=args.cfg_options)
    drop_pretrained(cfg)
    try:
        print(
            convert_file(
                args.file,
                args.out,
                cfg,
                part=args.part,
                source=args.source,
                allow_mismatch=args.allow_mismatch,
                trust=args.trust,
            )
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'not converted: {error}')


if __name__ == '__main__':
    main()
