"""Two gloo processes on CPU train, continue and evaluate both tasks through the shell scripts, two jobs at a time.

torchrun starts them. A fake srun starts those that continue: it sets Slurm's variables and starts one process per task.
"""

import json
import os
import re

import pytest
import torch

from tests.tools.tiny_runs import METRIC, finish, iterations_in, logs, options, recipe, run_tool, start
from wsbcn_mm.engine.launch.slurm import ports_of

pytestmark = pytest.mark.slow

TASKS = ('segmentation', 'video')
STATISTICS = {'segmentation': 'estimated', 'video': 'sync'}
"""The video run uses the authors' VOC setting: live statistics of both processes' batches."""

SRUN = """#!/bin/bash
until [ "$1" = "$PYTHON" ]; do [ "$1" = --ntasks ] && export SLURM_NTASKS=$2; shift; done
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait "$task" || exit; done
"""
JOBS = {'segmentation': '421', 'video': str(421 + 625)}
"""Both jobs have the same derived ports."""


def settings(task, data, iterations):
    statistics = STATISTICS[task]
    return options(task, data, iterations, f'model.backbone.norm_cfg.statistics={statistics}')


@pytest.fixture(scope='module')
def runs(tiny_data, tmp_path_factory):
    """Return the work_dir of each task after two iterations, two resumed ones and an evaluation, and the outputs.

    Every step starts the jobs of both tasks at once: they must find different ports.
    """
    folders = {task: tmp_path_factory.mktemp(f'two_{task}') for task in TASKS}
    srun = tmp_path_factory.mktemp('slurm') / 'srun'
    srun.write_text(SRUN)
    srun.chmod(0o755)

    def both(*commands, variables=None):
        given = [variables[task] if variables else {} for task in TASKS]
        children = [start(*command, **more) for command, more in zip(commands, given, strict=True)]
        return [finish(child) for child in children]

    both(
        *(
            ('dist_train.sh', recipe(task), 2, '--work-dir', folders[task], *settings(task, tiny_data, 2))
            for task in TASKS
        )
    )
    resume = {'segmentation': ['--resume'], 'video': ['--resume', folders['video'] / 'iter_2.pth']}
    slurm = dict(
        PATH=f'{srun.parent}:{os.environ["PATH"]}',
        GPUS='2',
        SLURM_STEP_ID='0',
        SLURM_NODELIST='localhost',
    )
    continued = both(
        *(
            ('slurm_train.sh', 'gpu', t, recipe(t), '--work-dir', folders[t], *resume[t], *settings(t, tiny_data, 4))
            for t in TASKS
        ),
        variables={t: dict(slurm, SLURM_JOB_ID=JOBS[t]) for t in TASKS},
    )
    printed = both(
        *(
            (
                *('dist_test.sh', recipe(t), folders[t] / 'iter_4.pth', 2, '--work-dir', folders[t] / 'test'),
                *('--show-dir', folders[t] / 'pictures', *settings(t, tiny_data, 4)),
            )
            for t in TASKS
        )
    )
    return folders, dict(zip(TASKS, printed, strict=True)), dict(zip(TASKS, continued, strict=True))


@pytest.mark.parametrize('task', TASKS)
def test_two_slurm_jobs_meet_separately(task, runs):
    assert len({ports_of(dict(SLURM_JOB_ID=job))[0] for job in JOBS.values()}) == 1
    assert runs[2][task].count(f'srun: 2 processes of job {JOBS[task]}.0 connect to localhost') == 1


@pytest.mark.parametrize('task', TASKS)
def test_training_continues_where_it_stopped(task, runs):
    folder = runs[0][task]
    first, second = logs(folder)
    assert iterations_in(first) == [1, 2]
    assert iterations_in(second) == [3, 4]
    assert f'Load checkpoint from {folder / "iter_2.pth"}' in second
    for log in (first, second):
        assert 'effective batch 2 = 2 device(s) x 1 x accumulation 1' in log
        assert ' BCN (sync)' in log or STATISTICS[task] == 'estimated'
        assert METRIC[task] in log


@pytest.mark.parametrize('task', TASKS)
def test_the_checkpoint_is_that_of_one_process(task, runs):
    saved = torch.load(runs[0][task] / 'iter_4.pth', map_location='cpu', weights_only=False)
    assert saved['meta']['iter'] == 4
    assert not any(name.startswith('module.') for name in saved['state_dict'])
    assert all(value.isfinite().all() for value in saved['state_dict'].values())
    counts = [int(value) for name, value in saved['state_dict'].items() if name.endswith('num_batches_tracked')]
    assert counts
    assert set(counts) == {4}
    assert all('momentum_buffer' in state for state in saved['optimizer']['state'].values())


@pytest.mark.parametrize('task', TASKS)
def test_two_processes_evaluate_as_one_does(task, runs, tiny_data, tmp_path):
    folders, printed, _ = runs
    folder = folders[task]
    run_tool(
        *('test.py', recipe(task), folder / 'iter_4.pth', '--work-dir', tmp_path),
        *('--show-dir', tmp_path / 'pictures', *settings(task, tiny_data, 4)),
    )
    two, one = (json.loads((path / 'metrics.json').read_text()) for path in (folder / 'test', tmp_path))
    assert two == one
    assert METRIC[task] in two
    assert one.get('acc/num_clips', 5) == 5
    # Only the process of rank 0 reports and draws its share.
    assert len(re.findall(rf'{METRIC[task]} {two[METRIC[task]]:.2f}.* -> .*metrics\.json', printed[task])) == 1
    drawn = {path.name.split('_', 1)[1] for path in (folder / 'pictures').glob('*.png')}
    assert 2 <= len(drawn) <= 3
    assert drawn < {path.name.split('_', 1)[1] for path in (tmp_path / 'pictures').glob('*.png')}
