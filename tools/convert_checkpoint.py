"""Convert another project's checkpoint for a recipe: python tools/convert_checkpoint.py FILE OUT RECIPE

FILE is .pth, .safetensors or BiT's .npz. OUT (.pth or .safetensors) is a checkpoint for the recipe's init_cfg. It also
has the settings that the file was trained with, its origin and its SHA-256. Every entry that does not fit is reported.
For a 3D recipe, the file of a 2D network becomes 2D weights with the recipe's names; init_cfg type 'Inflated2d'
inflates them.
"""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='checkpoint to read')
    parser.add_argument('out', help='checkpoint to write; it must not exist')
    parser.add_argument('config', help='recipe whose model it is for')
    parser.add_argument('--part', choices=['backbone', 'model'], default='backbone', help='part to convert')
    parser.add_argument('--source', help='origin of the file, if its keys do not show it (see docs/pretrained.md)')
    parser.add_argument('--allow-mismatch', action='store_true', help='import what fits despite another norm or WS')
    parser.add_argument('--trust', action='store_true', help='read a pickle with code in it, which can run anything')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before the import of torch: spinning OpenMP threads make a busy CPU up to 50 times slower.
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
