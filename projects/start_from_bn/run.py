"""What BN weights are worth as a start for WS and BCN, on the toy scenes.

python -m projects.start_from_bn.run            two seeds; writes results/ and the README's table
python -m projects.start_from_bn.run --quick    one seed, a few iterations, into work_dirs/, to see that it runs
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from projects.common.scenes_study import run_study
from projects.common.tiny_recipes import find_recipe

HERE = Path(__file__).parent
COLUMNS = ('start', 'seed', 'iteration', 'mIoU')


class Length(NamedTuple):
    """Lengths of the runs, in iterations."""

    source: int
    """Training of the BN model from which the others start, 16 samples per iteration."""
    target: int
    """Training of the others, one sample per iteration."""
    interval: int
    """Distance of evaluations."""


FULL, QUICK = Length(source=300, target=800, interval=200), Length(source=2, target=4, interval=2)
LEARNING_RATE = 0.02
CALIBRATION_BATCHES = 64


class Start(NamedTuple):
    """A way to begin training with one sample per step."""

    title: str
    norm: str
    """Norm of the recipe."""
    loads: bool = True
    """Whether it starts from the BN model."""
    hook: dict[str, Any] | None = None
    """Arguments of BNStartHook."""


STARTS = {
    'bn': Start('BN from BN', 'bn'),
    'scratch': Start('BCN + WS from scratch', 'bcn-ws', loads=False),
    'direct': Start('BCN + WS, BN weights loaded as they are', 'bcn-ws'),
    'exact': Start('BCN + WS, scales absorbed', 'bcn-ws', hook=dict()),
    'calibrated': Start(
        'BCN + WS, scales absorbed, calibrated', 'bcn-ws', hook=dict(calibration_batches=CALIBRATION_BATCHES)
    ),
}


def source_config(data_root: Path, work_dir: Path, seed: int, length: Length) -> Any:
    """Return the BN recipe at a batch of 16."""
    return _config('bn', '1xb16-acc1', data_root, work_dir, seed, length.source, length.source)


def target_config(start: Start, source: str, data_root: Path, work_dir: Path, seed: int, length: Length) -> Any:
    """Return a recipe at one sample per step that starts from a checkpoint."""
    cfg = _config(start.norm, '1xb1-acc1', data_root, work_dir, seed, length.target, length.interval)
    cfg.optim_wrapper.optimizer.lr = LEARNING_RATE
    if start.loads:
        cfg.load_from = source
        cfg.allow_norm_mismatch = start.norm != 'bn'
    if start.hook is not None:
        cfg.custom_hooks = [dict(type='BNStartHook', **start.hook)]
    return cfg


def _config(norm: str, setting: str, data_root: Path, work_dir: Path, seed: int, iters: int, interval: int) -> Any:
    from mmengine.config import Config

    cfg = Config.fromfile(find_recipe('segmentation', norm, setting))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data_root)
    cfg.work_dir, cfg.randomness = str(work_dir), dict(seed=seed)
    cfg.train_cfg.update(max_iters=iters, val_interval=interval)
    warmup = max(1, iters // 20)
    cfg.param_scheduler[0].update(end=warmup)
    cfg.param_scheduler[1].update(begin=warmup, end=iters)
    cfg.default_hooks.checkpoint.interval = iters
    cfg.default_hooks.logger.interval = max(1, iters // 10)
    return cfg


def train(cfg: Any, *, evaluate_first: bool) -> list[tuple[int, float]]:
    """Train a config, save a checkpoint, and return (iteration, mIoU in percent) of all evaluations."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from wsbcn_mm.engine import run

    scores: list[tuple[int, float]] = []

    class Scores(Hook):
        """Record all evaluations, one before the first iteration included, when every other hook is ready."""

        priority = 'LOWEST'

        def before_train(self, runner: Runner) -> None:
            if evaluate_first:
                runner.val_loop.run()

        def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
            scores.append((runner.iter, (metrics or {})['mIoU']))

    run.train(cfg, launcher='none', hooks=[Scores()])
    return scores


def study(data_root: Path, work_dir: Path, seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Train the BN model and every start from it; return one row per evaluation."""
    rows: list[dict[str, Any]] = []
    length = QUICK if quick else FULL
    for seed in range(seeds):
        folder = work_dir / f'source_{seed}'
        scores = train(source_config(data_root, folder, seed, length), evaluate_first=False)
        rows += rows_of('source', seed, scores)
        source = (folder / 'last_checkpoint').read_text().strip()
        for name, start in STARTS.items():
            cfg = target_config(start, source, data_root, work_dir / f'{name}_{seed}', seed, length)
            rows += rows_of(name, seed, train(cfg, evaluate_first=start.loads))
    return rows


def rows_of(start: str, seed: int, scores: Iterable[tuple[int, float]]) -> list[dict[str, Any]]:
    return [dict(start=start, seed=seed, iteration=iteration, mIoU=round(score, 2)) for iteration, score in scores]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: mIoU of every start at every evaluation, mean and standard deviation over seeds."""
    iterations = sorted({int(row['iteration']) for row in rows if row['start'] != 'source'})
    heads = ['before' if iteration == 0 else f'after {iteration}' for iteration in iterations]
    lines = [f'| start | {" | ".join(heads)} |', f'| --- |{" ---: |" * len(heads)}']
    for name, start in STARTS.items():
        cells = [
            cell([float(r['mIoU']) for r in rows if (r['start'], int(r['iteration'])) == (name, iteration)])
            for iteration in iterations
        ]
        lines.append(f'| {start.title} | {" | ".join(cells)} |')
    source = [float(row['mIoU']) for row in rows if row['start'] == 'source']
    seeds = len({row['seed'] for row in rows})
    return '\n'.join(lines) + f'\n\nThe BN model they start from: {cell(source)}. mIoU (%) over {seeds} seed(s).\n'


def cell(values: Sequence[float]) -> str:
    if not values:
        return '-'
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def main(arguments: Sequence[str] | None = None) -> int:
    return run_study(
        arguments,
        HERE,
        description='What BN weights are worth as a start for WS and BCN',
        seeds=2,
        columns=COLUMNS,
        study=study,
        table=table,
    )


if __name__ == '__main__':
    sys.exit(main())
