"""List every convolution and norm of a recipe's model: python tools/census.py RECIPE [CHECKPOINT] --expect bcn-ws

The tables have names, kinds, which norm follows which convolution, how many values each statistic is computed from,
rates, weight decay, and which layers are left out and why. The pairs come from a forward pass, which needs no memory
for weights and activations and takes a second. The exit code is 1 if the model does not match --expect.
"""

import argparse
import json
import os
import sys
from pathlib import Path

WIDTH = 140
"""Width of the tables in columns; a narrower terminal wraps their lines."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file, to show the number of updates')
    parser.add_argument('--expect', metavar='NORM', help='bn, gn-ws, bcn-ws-backbone, ...: exit with 1 on a mismatch')
    parser.add_argument('--devices', type=int, default=1, help='number of processes that train together (default: 1)')
    parser.add_argument(
        '--input-shape', nargs='+', type=int, metavar='N', help="shape of the model's input (default: the recipe's)"
    )
    parser.add_argument('--json', metavar='FILE', help='also write the whole census as JSON')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    # Before the import of torch: spinning OpenMP threads make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from rich.console import Console

    from wsbcn_mm.engine.recipe.checks import require_checkpoint
    from wsbcn_mm.engine.recipe.load import load_recipe
    from wsbcn_mm.engine.recipe.model import census_of_recipe
    from wsbcn_mm.engine.recipe.norms import check_layer_configs
    from wsbcn_mm.surgery.census import breaches, summary
    from wsbcn_mm.surgery.policies import get_policy

    policy = get_policy(args.expect) if args.expect else None
    cfg = load_recipe(args.config, options=args.cfg_options)
    check_layer_configs(cfg)
    if args.checkpoint:
        require_checkpoint(args.checkpoint)
    found, shape = census_of_recipe(cfg, args.checkpoint, shape=args.input_shape, devices=args.devices)

    console = Console()
    console.width = max(console.width, WIDTH)
    for table in tables(found):
        console.print(table)
    console.print(f'input {" x ".join(map(str, shape))}, {args.devices} device(s)', highlight=False)
    for line in summary(found):
        console.print(line, highlight=False, markup=False)
    wrong = breaches(found, policy) if policy else []
    if args.json:
        report = found.as_dict() | dict(input_shape=shape, devices=args.devices, expect=args.expect, breaches=wrong)
        Path(args.json).write_text(json.dumps(report, indent=2) + '\n')
    for line in wrong:
        console.print(f'not {args.expect}: {line}', highlight=False, markup=False)
    return int(bool(wrong))


def tables(found):
    """Return a table of the convolutions and a table of the norms."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    convs = Table(title='convolutions', title_justify='left', box=SIMPLE_HEAD)
    for title in ('name', 'layer', 'in, out', 'kernel', 'groups', 'fan-in', 'decay', 'norm after it'):
        convs.add_column(title, overflow='fold')
    for conv in found.convs:
        layer = conv.type + (f' ({conv.variant})' if conv.variant else '')
        kernel = 'x'.join(map(str, conv.kernel_size))
        channels = f'{conv.channels[0]}, {conv.channels[1]}'
        after = ', '.join(conv.norms) or 'none'
        convs.add_row(
            *map(cell, (conv.name, layer, channels, kernel, conv.groups, conv.fan_in, conv.weight_decay, after))
        )
    norms = Table(title='norms', title_justify='left', box=SIMPLE_HEAD)
    for title in (
        'name',
        'kind',
        'channels',
        'groups',
        'samples',
        'positions',
        'group values',
        'rate',
        'updates',
        'decay',
    ):
        norms.add_column(title, overflow='fold')
    for norm in found.norms:
        statistics = (norm.samples, norm.positions, norm.group_values, norm.rate, norm.updates, norm.weight_decay)
        norms.add_row(*map(cell, (norm.name, norm.kind, norm.channels, norm.groups, *statistics)))
    return convs, norms


def cell(value: object) -> str:
    return '' if value is None else f'{value:g}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
    sys.exit(main())
