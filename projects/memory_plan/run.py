"""The planned memory of a recipe of every family beside the memory of its real steps on a CPU.

python -m projects.memory_plan.run                       one of each family; writes results/ and README.md
python -m projects.memory_plan.run RECIPE... --out DIR   other recipes; writes into DIR
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from projects.common.csv_rows import read_rows, write_rows
from projects.common.readme_tables import write_table

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / 'configs'
RECIPES = (
    'deeplabv3/deeplabv3_r50-d16_bcn-ws_1xb1-acc16-33k_voc12aug-513x513.py',
    'deeplabv3plus/deeplabv3plus_r50-d16_gn-ws_1xb1-acc16-33k_voc12aug-513x513.py',
    'resnet3d/r3d-18_bcn-ws_1xb1-acc64-188k_kinetics400-16x4x1-112x112.py',
    'resnet3d/r2plus1d-18_bn_8xb2-acc4-188k_kinetics400-16x4x1-112x112.py',
    'resnet3d/slowonly-r50_gn-ws_1xb1-acc64-132k_sthv2-8seg-224x224.py',
    'resnet3d/i3d-r50_gn-ws_1xb1-acc64-188k_kinetics400-32x2x1-224x224.py',
)
"""DeepLabV3 and V3+, R3D, R(2+1)D, SlowOnly and I3D; BN, GN + WS and BCN + WS."""
SCALES = (0.5, 1.25)
"""Scales that the test of a segmentation recipe averages over."""
COLUMNS = ('recipe', 'stage', 'input', 'planned', 'counted', 'allocated')


def rows_of(recipe: str) -> list[dict[str, Any]]:
    """Return the peak bytes of a recipe's training, validation and test; segmentation is tested with augmentation.

    `planned` is the peak of tools/plan_memory.py. `counted` is the peak of the storage of all tensors in a real step.
    `allocated` is the peak of torch's allocator, which includes the workspace inside operations. Both are measured in a
    second step, when the optimizer's state and the kept filters exist.
    """
    import torch
    from mmengine.model import revert_sync_batchnorm
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import DefaultScope
    from torch import Tensor

    from wsbcn_mm.engine.memory.plan import batch_of, plan_recipe, step_of_test
    from wsbcn_mm.engine.recipe.load import load_recipe
    from wsbcn_mm.engine.recipe.model import build_model
    from wsbcn_mm.layers import standardize_once
    from wsbcn_mm.segmentation.evaluation.tta import use_tta

    cfg = load_recipe(recipe)
    if cfg.default_scope == 'mmseg':
        use_tta(cfg, SCALES)
    else:  # views run one after the other and wait as bytes, so one clip is enough
        cfg.test_dataloader.dataset.pipeline[0]['sampler']['num_clips'] = 1
    plan = plan_recipe(cfg, on_gpu=False, with_alternatives=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = revert_sync_batchnorm(build_model(cfg, 'cpu')).train()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        micro_batches = min(cfg.optim_wrapper.get('accumulative_counts', 1), 2)
        wrapper._accumulative_counts = micro_batches

        def row(stage: str, shape: tuple[int, ...], planned: int, step: Callable[[], object]) -> dict[str, Any]:
            state = [value for entry in wrapper.optimizer.state.values() for value in entry.values()]
            kept = [m.weight for m in model.modules() if getattr(m, 'kept_weight', None) is not None]
            there = [*model.parameters(), *model.buffers(), *kept, *(one for one in state if isinstance(one, Tensor))]
            before = sum(one.nbytes for one in there)
            counted, allocated = (before + peak for peak in peaks(step))
            size = 'x'.join(map(str, shape))
            return dict(zip(COLUMNS, (Path(recipe).stem, stage, size, planned, counted, allocated), strict=True))

        def training() -> None:
            with standardize_once(model) if micro_batches > 1 else nullcontext():
                for _ in range(micro_batches):
                    model.train_step(batch_of(plan.shapes['training']), wrapper)

        training()
        rows = [row('training', plan.shapes['training'], plan.training.peak().total, training)]
        model.eval()
        with torch.no_grad(), standardize_once(model):

            def evaluation() -> None:
                model.val_step(batch_of(plan.shapes['validation']))

            evaluation()  # makes the kept filters
            rows.append(row('validation', plan.shapes['validation'], plan.validation.peak().total, evaluation))
            wrapper.optimizer.state.clear()
            stage = 'test --tta' if cfg.default_scope == 'mmseg' else 'test'
            rows.append(row(stage, plan.shapes['test'], plan.test.peak().total, step_of_test(cfg, model)))
    return rows


def peaks(step: Callable[[], object]) -> tuple[int, int]:
    """Return the peak bytes of storage and of torch's allocator while `step` runs."""
    import numpy as np
    from torch.profiler import ProfilerActivity, profile

    from wsbcn_mm.diagnostics.allocations import Allocations

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, Allocations() as allocations:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return allocations.peak, int(np.cumsum(sizes).max())


def load(path: Path) -> list[dict[str, Any]]:
    return [row | {key: int(row[key]) for key in COLUMNS[3:]} for row in read_rows(path)]


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown: planned, counted and allocated memory."""
    lines = [
        '| recipe | stage | input | planned (MiB) | counted (MiB) | planned / counted | allocated (MiB) |',
        '| --- | --- | --- | ---: | ---: | ---: | ---: |',
    ]
    for row in rows:
        planned, counted, allocated = (row[key] for key in COLUMNS[3:])
        cells = [row['recipe'], row['stage'], row['input'], f'{planned / 2**20:,.0f}', f'{counted / 2**20:,.0f}']
        lines.append(f'| {" | ".join([*cells, f"{planned / counted:.3f}", f"{allocated / 2**20:,.0f}"])} |')
    furthest = max(abs(row['planned'] / row['counted'] - 1) for row in rows)
    return '\n'.join(lines) + f'\n\nThe plan is at most {100 * furthest:.1f} % off what was counted.\n'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipes', nargs='*', help='recipe files (default: one of each family)')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder of plan.csv (default: results/)')
    args = parser.parse_args(arguments)
    if args.recipes and not args.out:
        parser.error('recipes of your own need --out DIR')
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    rows = []
    for recipe in args.recipes or [str(CONFIGS / name) for name in RECIPES]:
        rows += rows_of(recipe)
        write_rows((args.out or HERE / 'results') / 'plan.csv', COLUMNS, rows)
    print(table(rows))
    if not args.out:
        write_table(HERE / 'README.md', 'plan', table(rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
