"""Is the data the bottleneck? python tools/benchmark_data.py RECIPE --workers 4 --step-time 0.12

Time every transform of a recipe's training samples in one thread, then the loader with workers. The report says whether
decoding or augmentation is the bottleneck, and what would help. The step time is that of an iteration on your device:
`time` minus `data_time` in the log. docs/throughput.md explains the numbers.
"""

import argparse
import os


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='recipe file')
    parser.add_argument('--samples', type=int, default=64, metavar='N', help='number of samples to time (default: 64)')
    parser.add_argument('--workers', type=int, metavar='W', help="workers of the loader (default: the recipe's)")
    parser.add_argument('--step-time', type=float, metavar='SECONDS', help='time of one iteration without loading data')
    parser.add_argument('--csv', metavar='FILE', help='also write the numbers as CSV')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the recipe')
    args = parser.parse_args()
    for name in ('samples', 'workers', 'step_time'):
        value = getattr(args, name)
        if value is not None and value <= 0 and not (name == 'workers' and value == 0):
            parser.error(f'--{name.replace("_", "-")} {value}: a number above 0 is expected')
    return args


def main() -> None:
    args = parse_args()
    # Before the import of torch: spinning OpenMP threads make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from rich.console import Console

    from wsbcn_mm.engine.data.advice import judge_loader
    from wsbcn_mm.engine.data.speed import time_recipe, usable_cores
    from wsbcn_mm.engine.recipe.load import load_recipe

    cfg = load_recipe(args.config, options=args.cfg_options)
    workers = cfg.train_dataloader.num_workers if args.workers is None else args.workers
    batch = cfg.train_dataloader.batch_size
    sample, speed = time_recipe(cfg, workers, args.samples)

    console = Console()
    console.print(table(sample))
    cores = usable_cores()
    for line in judge_loader(sample, speed, workers=workers, cores=cores, batch=batch, step=args.step_time):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if args.csv:
        write_csv(args.csv, sample, speed, workers)


def table(sample):
    """Return a table with one row per transform."""
    from rich.table import Table

    out = Table(title=f'{sample.samples} samples, one thread', title_justify='left')
    out.add_column('transform')
    for title in ('ms', 'share', 'samples/s'):
        out.add_column(title, justify='right')
    for name, seconds in rows(sample):
        if name == 'sample':
            out.add_section()
        share = f'{100 * seconds / sample.seconds:.0f} %'
        out.add_row(name, f'{1000 * seconds:.2f}', share, f'{1 / max(seconds, 1e-9):,.0f}')
    return out


def rows(sample):
    """Return (name, seconds) of each transform and of the whole sample."""
    return [*((stage.name, stage.seconds) for stage in sample.stages), ('sample', sample.seconds)]


def write_csv(file, sample, speed, workers):
    """Write one row per transform, one for the sample and one for the loader."""
    import csv

    with open(file, 'w', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(['stage', 'seconds_per_sample', 'samples_per_second'])
        for name, seconds in rows(sample):
            writer.writerow([name, f'{seconds:.6f}', f'{1 / max(seconds, 1e-9):.3f}'])
        writer.writerow([f'loader with {workers} workers', f'{1 / speed:.6f}', f'{speed:.3f}'])


if __name__ == '__main__':
    main()
