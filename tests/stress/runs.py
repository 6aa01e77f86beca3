"""Short runs of the tiny recipes, in child processes, with every feature that resuming must restore."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import wsbcn_mm.segmentation
import wsbcn_mm.video  # noqa: F401 - imported before the fork: a run then starts at once
from projects.common.tiny_recipes import find_recipe
from wsbcn_mm.engine import run

ITERATIONS = 20
ACCUMULATION = 4
SAVE_EVERY = 3
VALIDATE_EVERY = 5
FORK = multiprocessing.get_context('fork')
AUGMENTATION = {
    'segmentation': [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomResize', scale=(64, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(48, 48), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs'),
    ],
    'video': [
        dict(type='DecodeClip', sampler=dict(type='segments', num_segments=4), random=True),
        dict(type='RandomResizedCropClip', size=24),
        dict(type='PackClipInputs'),
    ],
}


class Case(NamedTuple):
    """The settings of a run."""

    task: str
    workers: int
    """Workers of each process's loader."""
    processes: int
    iterations: int = ITERATIONS

    def __str__(self) -> str:
        return f'{self.task}, {self.workers} workers, {self.processes} process(es)'


def config(case: Case, data: Path, work_dir: Path) -> Config:
    """Return a recipe with BCN + WS, accumulation, augmentation, dropout, averaged weights and clipped gradients.

    The intervals of checkpoints, validations and optimizer steps are coprime.
    """
    cfg = Config.fromfile(find_recipe(case.task, 'bcn-ws', '1xb1-acc16'))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = f'{data}/{"seg" if case.task == "segmentation" else "video"}/'
    cfg.train_dataloader.num_workers = case.workers
    cfg.train_dataloader.persistent_workers = case.workers > 0
    cfg.train_dataloader.dataset.pipeline = AUGMENTATION[case.task]
    head = cfg.model.decode_head if case.task == 'segmentation' else cfg.model.head
    head.dropout_ratio = 0.3
    cfg.model.backbone.norm_cfg.num_groups = 4
    cfg.optim_wrapper.accumulative_counts = ACCUMULATION
    cfg.optim_wrapper.clip_grad = dict(max_norm=1.0)
    cfg.train_cfg.update(max_iters=case.iterations, val_interval=VALIDATE_EVERY)
    cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = 2 * ACCUMULATION
    cfg.param_scheduler[1].end = case.iterations
    cfg.default_hooks.checkpoint.update(interval=SAVE_EVERY, max_keep_ckpts=4)
    cfg.default_hooks.logger.interval = 1
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    cfg.env_cfg.cudnn_benchmark = False
    cfg.work_dir, cfg.resume = str(work_dir), True
    return cfg


class Progress(Hook):
    """Report the number of iterations to the process that started the run."""

    priority = 'LOWEST'

    def __init__(self, done: Any) -> None:
        self.done = done

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.rank == 0:
            self.done.value = runner.iter + 1


def train(case: Case, data: Path, work_dir: Path, rank: int, port: int, hooks: Sequence[Hook]) -> None:
    """Train in this process, or resume the run in `work_dir`; output goes to a file there."""
    work_dir.mkdir(parents=True, exist_ok=True)
    output = (work_dir / f'output{rank}.txt').open('a')
    os.dup2(output.fileno(), sys.stdout.fileno())
    os.dup2(output.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    cfg = config(case, data, work_dir)
    if case.processes > 1:
        cluster = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=case.processes, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
        os.environ.update({name: str(value) for name, value in cluster.items()})
    run.train(cfg, launcher='pytorch' if case.processes > 1 else 'none', hooks=hooks)


class Started:
    """The processes of a run. Each has a copy of every hook."""

    def __init__(self, case: Case, data: Path, work_dir: Path, *hooks: Hook) -> None:
        self.done = FORK.Value('i', 0)
        self.work_dir = work_dir
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.processes = [
            FORK.Process(target=train, args=(case, data, work_dir, rank, port, [Progress(self.done), *hooks]))
            for rank in range(case.processes)
        ]
        for process in self.processes:
            process.start()

    def finish(self) -> None:
        """Wait for the end of all processes.

        Raises:
            RuntimeError: If a process fails, with the end of its output.
        """
        for rank, process in enumerate(self.processes):
            process.join()
            if process.exitcode:
                written = (self.work_dir / f'output{rank}.txt').read_text()
                raise RuntimeError(f'process {rank} ended with {process.exitcode}:\n{written[-3000:]}')

    def kill(self) -> int:
        """Kill all processes with SIGKILL and return the number of iterations done."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        return int(self.done.value)

    def wait_until(self, moment: Callable[[], bool]) -> bool:
        """Wait until `moment()` is true; return False if the run ends first."""
        while all(process.is_alive() for process in self.processes):
            if moment():
                return True
            time.sleep(0.0005)
        return False

    def writing(self) -> bool:
        """Return whether a checkpoint is being written."""
        return any(self.work_dir.glob('.*.partial'))


def last_checkpoint(work_dir: Path) -> dict[str, Any]:
    return torch.load((work_dir / 'last_checkpoint').read_text(), map_location='cpu', weights_only=True)


def resumed_from(work_dir: Path) -> int:
    """Return the iteration of the checkpoint that `last_checkpoint` names; 0 without one."""
    pointer = work_dir / 'last_checkpoint'
    return int(Path(pointer.read_text()).stem.split('_')[1]) if pointer.is_file() else 0


COMPARED = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')


def differences(left: dict[str, Any], right: dict[str, Any]) -> tuple[int, list[str]]:
    """Compare weights, buffers, averages, optimizer and schedulers of two checkpoints bit by bit.

    Returns:
        The number of compared values, and the names of those that differ.
    """
    flat = [dict(leaves({name: checkpoint[name] for name in COMPARED})) for checkpoint in (left, right)]
    names = flat[0].keys() | flat[1].keys()
    missing = object()
    return len(names), sorted(
        name for name in names if not same(flat[0].get(name, missing), flat[1].get(name, missing))
    )


def leaves(node: Any, name: str = '') -> Any:
    """Yield (name, value) of all leaves of nested dicts and lists."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else None
    if entries is None:
        yield name, node
    else:
        for key, value in entries:
            yield from leaves(value, f'{name}.{key}' if name else str(key))


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return type(left) is type(right) and left == right
