"""Time from the start of a resumed run to its first batch, and the samples that it reads for it.

python -m tests.stress.first_batch        at iterations 12 and 1,000,000; writes results/start.csv
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from projects.common.csv_rows import write_rows

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COLUMNS = ('what', 'iteration', 'data', 'samples_read', 'seconds')
NUMBERS = itertools.count()


def resumed(checkpoint: Path, iteration: int, data: Path, work_dir: Path) -> dict[str, Any]:
    """Resume a segmentation checkpoint, relabelled as one of `iteration`, for one iteration."""
    import torch
    from mmcv.transforms import BaseTransform
    from mmengine.hooks import Hook
    from mmengine.registry import TRANSFORMS
    from mmengine.runner import Runner

    from wsbcn_mm.engine import run

    from . import runs

    read, moments = [], []

    class CountReads(BaseTransform):
        def transform(self, results: dict) -> dict:
            read.append(results['img_path'])
            return results

    class FirstBatch(Hook):
        priority = 'HIGHEST'

        def before_run(self, runner: Runner) -> None:
            moments.append(time.perf_counter())

        def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
            moments.extend([time.perf_counter(), len(runner.train_dataloader.dataset)])

    TRANSFORMS.register_module(name='CountReads', module=CountReads, force=True)
    saved = torch.load(checkpoint, weights_only=True)
    saved['meta']['iter'] = iteration
    work_dir.mkdir(parents=True)
    torch.save(saved, work_dir / f'iter_{iteration}.pth')
    cfg = runs.config(runs.Case('segmentation', 0, 1, iteration + 1), data, work_dir)
    cfg.train_cfg.val_interval = iteration + 2
    cfg.train_dataloader.dataset.pipeline.insert(0, dict(type='CountReads'))
    cfg.load_from = str(work_dir / f'iter_{iteration}.pth')
    cfg.experiment_name = f'start{next(NUMBERS)}'
    run.train(cfg, launcher='none', hooks=[FirstBatch()])
    start, first, samples = moments
    return dict(
        **dict(what='resumed run, to its first batch', iteration=iteration),
        **dict(data=samples, samples_read=len(read), seconds=first - start),
    )


def sampled(size: int, iteration: int) -> dict[str, Any]:
    """Measure only the sampler, at one sample per iteration."""
    from wsbcn_mm.engine.resume.order import GlobalOrderSampler

    start = time.perf_counter()
    sampler = GlobalOrderSampler(range(size), seed=0)
    sampler.skip(iteration)
    next(iter(sampler))
    seconds = time.perf_counter() - start
    return dict(what='sampler alone', iteration=iteration, data=size, samples_read=0, seconds=seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Time from the start of a resumed run to its first batch')
    parser.add_argument('--results', type=Path, default=HERE / 'results' / 'start.csv')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'kill_and_resume')
    args = parser.parse_args(arguments)
    os.environ |= dict(CUDA_VISIBLE_DEVICES='')
    from . import runs
    from .kill_and_resume import build_data

    data, folder = build_data(args.work_dir / 'data'), args.work_dir / 'start'
    shutil.rmtree(folder, ignore_errors=True)
    runs.Started(runs.Case('segmentation', 0, 1, 12), data, folder / 'whole').finish()
    checkpoint = folder / 'whole' / 'iter_12.pth'
    rows = [resumed(checkpoint, iteration, data, folder / str(iteration)) for iteration in (12, 1_000_000)]
    rows += [sampled(size, 1_000_000) for size in (2975, 240_000, 10_000_000)]
    write_rows(args.results, COLUMNS, ({**row, 'seconds': f'{row["seconds"]:.3f}'} for row in rows))
    for row in rows:
        print(row)
    return 0


if __name__ == '__main__':
    sys.exit(main())
