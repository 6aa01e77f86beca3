"""Does it fit? python tools/plan_memory.py RECIPE --device-memory 11GB --picture memory.png

Print the peak memory of a recipe's training, validation and test by stage and kind, and of its training with 1 and 2
samples per device, every activation_memory, float32 and bfloat16. The real train step runs on tensors without memory,
so neither a GPU nor data are needed. docs/memory.md says what the numbers do not include.
"""

import argparse
import os
import re
from pathlib import Path

UNITS = {'MB': 2**20, 'MIB': 2**20, 'GB': 2**30, 'GIB': 2**30}
STAGES = ('forward', 'backward', 'optimizer')
WIDTH = 120
"""Width of the tables in columns."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe file')
    parser.add_argument(
        '--device-memory', type=size_in_bytes, metavar='SIZE', help='memory of a device, 11GB or 11000MB (GB = GiB)'
    )
    parser.add_argument(
        '--reserve',
        type=size_in_bytes,
        default='1GB',
        metavar='SIZE',
        help="part of it for the driver, convolutions' workspaces and fragmentation (default: 1GB)",
    )
    parser.add_argument(
        '--tta',
        nargs='*',
        type=float,
        metavar='SCALE',
        help='plan the test with test-time augmentation, as tools/test.py --tta runs it',
    )
    parser.add_argument('--picture', metavar='PNG', help="draw the memory of one of the recipe's training steps")
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    args = parser.parse_args()
    if args.device_memory is not None and args.device_memory <= args.reserve:
        parser.error(
            f'--reserve {gigabytes(args.reserve)} leaves nothing of --device-memory {gigabytes(args.device_memory)}'
        )
    return args


def gigabytes(count: int) -> str:
    return f'{count / 2**30:.3g}GB'


def size_in_bytes(text: str) -> int:
    """Parse '11GB' to bytes; a card of 11GB has 11 GiB."""
    found = re.fullmatch(r'(\d+(?:\.\d+)?) *([a-zA-Z]+)', text)
    if not found or found[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f'{text!r}: a number with MB or GB is expected, such as 11GB')
    return int(float(found[1]) * UNITS[found[2].upper()])


def main() -> None:
    args = parse_args()
    # Before the import of torch: spinning OpenMP threads make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from rich.console import Console

    from wsbcn_mm.engine.memory.plan import plan_recipe
    from wsbcn_mm.engine.recipe.load import load_recipe
    from wsbcn_mm.engine.recipe.task import require_segmentation

    if args.picture and not Path(args.picture).absolute().parent.is_dir():
        raise FileNotFoundError(f'--picture {args.picture!r}: its folder does not exist')
    cfg = load_recipe(args.config, options=args.cfg_options)
    if args.tta is not None:
        require_segmentation(cfg, '--tta')
        from wsbcn_mm.segmentation.evaluation.tta import SCALES, use_tta

        use_tta(cfg, args.tta or SCALES)
    plan = plan_recipe(cfg)
    available = args.device_memory - args.reserve if args.device_memory else None

    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(stage_table(plan))
    console.print(choice_table(plan, available))
    for line in verdict(plan, available):
        console.print(line, highlight=False, markup=False)
    if args.picture:
        draw(plan, args.picture, available)


def stage_table(plan):
    """Return a table of the recipe's memory at the peak of each stage."""
    from rich.table import Table

    from wsbcn_mm.microbatch.memory_plan import KINDS

    table = Table(title=f'MiB at the peak of each stage: {describe(plan.own)}', title_justify='left')
    table.add_column('stage')
    for title in (*KINDS, 'total'):
        table.add_column(title, justify='right')
    peaks = [(f'training, {stage}', plan.training.peak(stage)) for stage in STAGES]
    peaks += [('validation', plan.validation.peak()), ('test', plan.test.peak())]
    for stage, moment in peaks:
        table.add_row(stage, *(mebibytes(count) for count in (*moment, moment.total)))
    return table


def choice_table(plan, available):
    """Return a table of the peak memory of training with every choice."""
    from rich.table import Table

    table = Table(title='MiB at the peak of a training step', title_justify='left')
    for title in ('precision', 'samples per device', 'activation_memory'):
        table.add_column(title)
    table.add_column('peak', justify='right')
    if available is not None:
        table.add_column('fits')
    for choice, memory in sorted(plan.choices.items(), key=lambda item: (item[0].precision, item[0].samples)):
        need = memory.peak().total
        row = [choice.precision, str(choice.samples), choice.activation_memory, mebibytes(need)]
        table.add_row(*row, *([] if available is None else ['yes' if need <= available else 'no']))
    return table


def verdict(plan, available):
    """Yield lines with the inputs of the plan and, if a device's memory is given, what fits."""
    from wsbcn_mm.microbatch.memory_plan import fastest

    yield 'inputs: ' + ', '.join(f'{stage} {" x ".join(map(str, shape))}' for stage, shape in plan.shapes.items())
    if available is None:
        return
    for name, memory in (('validation', plan.validation), ('test', plan.test)):
        need = memory.peak().total
        if need > available:
            yield f'{name} does not fit: {mebibytes(need)} MiB needed, {mebibytes(available)} MiB available'
    fitting = [choice for choice, memory in plan.choices.items() if memory.peak().total <= available]
    same = [c for c in fitting if (c.samples, c.precision) == (plan.own.samples, plan.own.precision)]
    if not fitting:
        least = min(memory.peak().total for memory in plan.choices.values())
        yield (
            f'no training fits: at least {mebibytes(least)} MiB needed, {mebibytes(available)} MiB available; '
            'train on smaller inputs'
        )
    elif same:
        yield f'the recipe fits, fastest with activation_memory={fastest(same).activation_memory}'
    else:
        yield f'the recipe does not fit with {plan.own.samples} sample(s) in {plan.own.precision}'
    if fitting:
        yield f'the fastest choice that fits: {describe(fastest(fitting))}'


def describe(choice):
    return f'{choice.precision}, {choice.samples} per device, activation_memory={choice.activation_memory}'


def mebibytes(count):
    return f'{count / 2**20:,.0f}' if count >= 100 * 2**20 else f'{count / 2**20:,.1f}'


def draw(plan, path, available):
    """Draw the memory over the training step, by kind."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--picture needs matplotlib: pip install -e '.[demo]'") from None
    import numpy as np

    from wsbcn_mm.microbatch.memory_plan import KINDS

    memory = plan.training
    figure = Figure(figsize=(10, 4.5), layout='constrained')
    axes = figure.subplots()
    axes.stackplot(np.arange(len(memory.stages)), memory.bytes / 2**20, labels=KINDS, step='post', lw=0)
    starts = [0, *(np.flatnonzero(memory.stages[1:] != memory.stages[:-1]) + 1)]
    for start in starts:
        axes.axvline(start, color='0.3', lw=0.6)
    top = memory.bytes.sum(0).max() / 2**20
    lengths = np.diff([*starts, len(memory.stages)])
    for start, length in zip(starts, lengths, strict=True):
        if length > len(memory.stages) / 20:
            axes.text(start + length / 2, 1.03 * top, memory.stages[start], ha='center')
    if available is not None and available / 2**20 < 1.5 * top:
        axes.axhline(available / 2**20, color='black', ls='--', lw=1, label='available')
        top = max(top, available / 2**20)
    axes.set(xlabel='operations of one training step', ylabel='memory (MiB)', ylim=(0, 1.12 * top))
    axes.set_xlim(0, len(memory.stages) - 1)
    axes.set_title(describe(plan.own), loc='left', fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc='outside right upper', frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == '__main__':
    main()
