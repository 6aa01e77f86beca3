"""Run the tools on a few scenes and clips of the demo, in this process or through the shell scripts."""

import itertools
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from projects.common.tiny_recipes import find_recipe

ROOT = Path(__file__).parents[2]
FOLDERS = {'segmentation': 'seg', 'video': 'video'}
NUMBERS = itertools.count()
METRIC = {'segmentation': 'mIoU', 'video': 'acc/top1'}


def recipe(task: str, norm: str = 'bcn-ws') -> str:
    return str(find_recipe(task, norm, '1xb1-acc1'))


def options(task: str, data: Path, iterations: int, *more: str) -> list[str]:
    """Return command-line options that shorten a recipe: a checkpoint every 2 iterations, a log line for each."""
    root = f'{data / FOLDERS[task]}/'
    changed = [f'{part}_dataloader.dataset.data_root={root}' for part in ('train', 'val', 'test')]
    changed += [f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={iterations}']
    changed += ['default_hooks.checkpoint.interval=2', 'default_hooks.checkpoint.max_keep_ckpts=3']
    changed += ['default_hooks.logger.interval=1', *more]
    return ['--cfg-options', *changed]


def run_tool(name: str, *arguments: str | Path) -> None:
    """Run `python tools/<name> <arguments>` in this process: importing everything takes longer than the run.

    mmengine identifies loggers by experiment and second, so every run needs its own name.
    """
    named = [f'experiment_name=run{next(NUMBERS)}'] if '--cfg-options' in arguments else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [f'tools/{name}', *map(str, arguments), *named])
        runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')


def start(script: str, *arguments: str | Path, **variables: str) -> subprocess.Popen:
    """Start a shell script of tools/ with these variables in its environment."""
    command = ['bash', str(ROOT / 'tools' / script), *map(str, arguments)]
    environment = os.environ | dict(PYTHON=sys.executable, OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE') | variables
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(child: subprocess.Popen) -> str:
    """Return the output of a script that must succeed."""
    output, _ = child.communicate(timeout=240)
    assert child.returncode == 0, output[-3000:]
    return output


def logs(work_dir: Path) -> list[str]:
    """Return the texts of the logs in a work_dir, the oldest first."""
    return [path.read_text() for path in sorted(work_dir.glob('*/*.log'))]


def iterations_in(log: str) -> list[int]:
    """Return the numbers of the training iterations in a log."""
    return [int(number) for number in re.findall(r'Iter\(train\) \[ *(\d+)/', log)]
