"""Evaluation with running statistics as trained, averaged, or measured again, on the toy scenes.

python -m projects.running_statistics.run            writes results/ and the README's table
python -m projects.running_statistics.run --quick    a few iterations, into work_dirs/, to see that it runs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from projects.common.scenes_study import run_study
from projects.common.tiny_recipes import find_recipe

HERE = Path(__file__).parent
COLUMNS = ('recipe', 'seed', 'weights', 'statistics', 'mIoU', 'norm', 'var_ratio', 'mean_shift')
MODELS = {
    'bn 1xb1-acc1': 'BN, 1 sample',
    'bn 1xb16-acc1': 'BN, 16 samples',
    'bcn-ws 1xb1-acc1': 'BCN + WS, 1 sample',
}
VARIANTS = (
    ('last', 'as trained'),
    ('last', 'measured'),
    ('averaged', 'of the last weights'),
    ('averaged', 'averaged'),
    ('averaged', 'measured'),
)
SAMPLES = 2400
"""Training samples of every run, as in the demo."""
SPAN = 0.1
"""Fraction of a run that the averages of weights span: 1 / momentum iterations."""
MEASURED_ON = 200


def config(recipe: str, data_root: Path, work_dir: Path, seed: int, samples: int) -> Any:
    """Return a tiny recipe that trains on a number of samples and averages its weights."""
    from mmengine.config import Config

    cfg = Config.fromfile(find_recipe('segmentation', *recipe.split()))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data_root)
    iters = max(2, samples // cfg.train_dataloader.batch_size)
    cfg.work_dir, cfg.randomness = str(work_dir), dict(seed=seed)
    cfg.train_cfg.update(max_iters=iters, val_interval=10 * iters)
    cfg.param_scheduler[0].update(end=max(1, iters // 20))
    cfg.param_scheduler[1].update(begin=max(1, iters // 20), end=iters)
    cfg.default_hooks.checkpoint.interval = iters
    cfg.default_hooks.logger.interval = max(1, iters // 5)
    average = dict(type='EMAPerStepHook', momentum=min(0.5, 1 / (SPAN * iters)))
    cfg.custom_hooks = [average]
    return cfg


def evaluations(cfg: Any, checkpoint: Path) -> Iterator[dict[str, Any]]:
    """Yield mIoU and the largest gap of every variant of weights and statistics of a checkpoint."""
    import torch
    from mmengine.runner import Runner

    from wsbcn_mm.diagnostics.running_statistics import norms_with_statistics
    from wsbcn_mm.diagnostics.statistics_gap import statistics_gaps
    from wsbcn_mm.engine.data.training_batches import losses, training_batches
    from wsbcn_mm.surgery.calibration import calibrate

    saved = torch.load(checkpoint, weights_only=True)
    last = {k.removeprefix('module.'): v for k, v in saved['ema_state_dict'].items() if k != 'steps'}
    averaged = saved['state_dict']
    cfg.default_hooks, cfg.custom_hooks = {}, []
    cfg.work_dir += '_evaluated'
    runner = Runner.from_cfg(cfg)
    model: Any = runner.model
    names = {f'{n}.{b}' for n, norm in norms_with_statistics(model).items() for b, _ in norm.named_buffers()}
    states = {
        ('last', 'as trained'): last,
        ('last', 'measured'): last,
        ('averaged', 'of the last weights'): averaged | {name: last[name] for name in names},
        ('averaged', 'averaged'): averaged,
        ('averaged', 'measured'): averaged,
    }
    batches = training_batches(runner.build_dataloader(cfg.train_dataloader), MEASURED_ON)
    for (weights, statistics), state in states.items():
        model.load_state_dict(state)
        if statistics == 'measured':
            calibrate(model, batches, forward=partial(losses, model))
        gap = statistics_gaps(model, batches, forward=partial(losses, model))[0]
        score = runner.val_loop.run()['mIoU']
        yield dict(
            weights=weights,
            statistics=statistics,
            mIoU=round(float(score), 2),
            norm=gap.norm,
            var_ratio=round(gap.var_ratio, 3),
            mean_shift=round(gap.mean_shift, 3),
        )


def study(data_root: Path, work_dir: Path, seeds: int, quick: bool) -> list[dict[str, Any]]:
    """Train every recipe and evaluate its checkpoint; return one row per evaluation."""
    from wsbcn_mm.engine.run import train

    rows, samples = [], 4 if quick else SAMPLES
    for seed in range(seeds):
        for recipe in MODELS:
            folder = work_dir / f'{recipe.replace(" ", "_")}_{seed}'
            train(config(recipe, data_root, folder, seed, samples), launcher='none')
            checkpoint = Path((folder / 'last_checkpoint').read_text().strip())
            cfg = config(recipe, data_root, folder, seed, samples)
            rows += [dict(recipe=recipe, seed=seed, **row) for row in evaluations(cfg, checkpoint)]
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: mIoU and the factor by which the worst running variance is off, means over seeds."""
    lines = [f'| weights | statistics | {" | ".join(MODELS.values())} |', f'| --- | --- |{" ---: |" * len(MODELS)}']
    for weights, statistics in VARIANTS:
        cells = []
        for recipe in MODELS:
            key = (recipe, weights, statistics)
            found = [row for row in rows if (row['recipe'], row['weights'], row['statistics']) == key]
            factor = mean(max(float(row['var_ratio']), 1 / float(row['var_ratio'])) for row in found)
            cells.append(f'{mean(float(row["mIoU"]) for row in found):.1f} ({factor:.2f}x)')
        lines.append(f'| {weights} | {statistics} | {" | ".join(cells)} |')
    seeds = len({row['seed'] for row in rows})
    return '\n'.join(lines) + f'\n\nMeans over {seeds} seed(s).\n'


def main(arguments: Sequence[str] | None = None) -> int:
    return run_study(
        arguments,
        HERE,
        description='Evaluation with running statistics as trained, averaged, or measured again',
        seeds=1,
        columns=COLUMNS,
        study=study,
        table=table,
    )


if __name__ == '__main__':
    sys.exit(main())
