"""The shell scripts pass their arguments to torchrun or srun, and print their usage."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
USAGE = {
    'dist_train.sh': 'tools/dist_train.sh RECIPE DEVICES [options of tools/train.py]',
    'dist_test.sh': 'tools/dist_test.sh RECIPE CHECKPOINT DEVICES [options of tools/test.py]',
    'slurm_train.sh': 'tools/slurm_train.sh PARTITION JOB_NAME RECIPE [options of tools/train.py]',
    'slurm_test.sh': 'tools/slurm_test.sh PARTITION JOB_NAME RECIPE CHECKPOINT [options of tools/test.py]',
}
NEEDED = {'dist_train.sh': 2, 'dist_test.sh': 3, 'slurm_train.sh': 3, 'slurm_test.sh': 4}
SETTINGS = ('GPUS', 'GPUS_PER_NODE', 'CPUS_PER_TASK', 'SRUN_ARGS', 'NNODES', 'NODE_RANK', 'OMP_NUM_THREADS')


def run(script, *arguments, folder=TOOLS.parent, **environment):
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = ['bash', str(TOOLS / script), *arguments]
    return subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=30)


def fake(folder, name, code=0):
    """A command that prints its arguments, one per line, and two variables."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "PYTHONPATH=$PYTHONPATH" "OMP=$OMP_NUM_THREADS"\nexit {code}\n')
    path.chmod(0o755)
    return path


def started(done):
    """Return the arguments of a fake command; its PYTHONPATH must lead to the repository."""
    *arguments, path, threads = done.stdout.splitlines()
    first = path.removeprefix('PYTHONPATH=').split(':')[0]
    assert (TOOLS.parent / first).resolve() == TOOLS.parent
    return arguments, threads.removeprefix('OMP=')


@pytest.mark.parametrize('script', USAGE)
def test_too_few_arguments_print_the_usage_and_exit_with_2(script):
    for count in range(NEEDED[script]):
        done = run(script, *['x'] * count)
        assert done.returncode == 2
        assert done.stdout == ''
        first, *more = done.stderr.splitlines()
        assert first.endswith(f': {USAGE[script]}')
        assert not any(line.startswith('#') for line in (first, *more))


@pytest.mark.parametrize(
    ('script', 'given', 'handed_on'),
    [
        ('dist_train.sh', ['a b.py', '2'], ['train.py', 'a b.py']),
        ('dist_test.sh', ['a b.py', 'c.pth', '2'], ['test.py', 'a b.py', 'c.pth']),
    ],
)
def test_one_machine_starts_a_torchrun_on_its_own_port(script, given, handed_on, tmp_path):
    done = run(script, *given, '--cfg-options', 'x="a b"', PYTHON=str(fake(tmp_path, 'python')))
    assert done.returncode == 0, done.stderr
    arguments, threads = started(done)
    module = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    assert arguments[:5] == module
    assert Path(arguments[5]).resolve() == (TOOLS / handed_on[0]).resolve()
    assert arguments[6:] == [*handed_on[1:], '--cfg-options', 'x="a b"']
    assert threads == '1'


def test_several_machines_meet_at_the_given_address(tmp_path):
    where = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PYTHON=str(fake(tmp_path, 'python')))
    arguments, threads = started(run('dist_train.sh', 'a.py', '8', OMP_NUM_THREADS='4', **where))
    meeting = ['--nnodes', '2', '--node_rank', '1', '--master_addr', '10.0.0.1', '--master_port', '29500']
    assert arguments[2:12] == [*meeting, '--nproc_per_node', '8']
    assert threads == '4'
    arguments, _ = started(run('dist_train.sh', 'a.py', '8', MASTER_PORT='4000', **where))
    assert arguments[8:10] == ['--master_port', '4000']


@pytest.mark.parametrize(
    ('script', 'given', 'handed_on'),
    [
        ('slurm_train.sh', ['gpu', 'my job', 'a b.py'], ['train.py', 'a b.py']),
        ('slurm_test.sh', ['gpu', 'my job', 'a b.py', 'c.pth'], ['test.py', 'a b.py', 'c.pth']),
    ],
)
def test_slurm_asks_for_one_task_per_gpu(script, given, handed_on, tmp_path):
    fake(tmp_path, 'srun')
    done = run(script, *given, '--work-dir', 'w', PATH=f'{tmp_path}:{os.environ["PATH"]}', PYTHON='py')
    assert done.returncode == 0, done.stderr
    arguments, _ = started(done)
    assert arguments[:13] == [
        *('-p', 'gpu', '--job-name', 'my job', '--gres', 'gpu:8', '--ntasks', '8', '--ntasks-per-node', '8'),
        *('--cpus-per-task', '5', '--kill-on-bad-exit=1'),
    ]
    assert arguments[13:15] == ['py', '-u']
    assert Path(arguments[15]).resolve() == (TOOLS / handed_on[0]).resolve()
    assert arguments[16:] == [*handed_on[1:], '--work-dir', 'w']


@pytest.mark.parametrize(
    ('environment', 'gpus', 'per_node'),
    [(dict(GPUS='4'), '4', '4'), (dict(GPUS='16'), '16', '8'), (dict(GPUS='16', GPUS_PER_NODE='4'), '16', '4')],
)
def test_slurm_request_follows_the_environment(environment, gpus, per_node, tmp_path):
    fake(tmp_path, 'srun')
    path = f'{tmp_path}:{os.environ["PATH"]}'
    more = dict(CPUS_PER_TASK='12', SRUN_ARGS='--quotatype=spot --time 1:00', PATH=path)
    arguments, _ = started(run('slurm_train.sh', 'gpu', 'job', 'a.py', **more, **environment))
    request = dict(zip(arguments[:12:2], arguments[1:12:2], strict=True))
    assert request['--gres'] == f'gpu:{per_node}'
    assert request['--ntasks'] == gpus
    assert request['--ntasks-per-node'] == per_node
    assert request['--cpus-per-task'] == '12'
    assert arguments[12:18] == ['--kill-on-bad-exit=1', '--quotatype=spot', '--time', '1:00', 'python', '-u']


def test_the_exit_code_of_the_run_is_that_of_the_script(tmp_path):
    python = str(fake(tmp_path, 'python', code=7))
    fake(tmp_path, 'srun', code=9)
    assert run('dist_train.sh', 'a.py', '2', PYTHON=python).returncode == 7
    assert run('dist_test.sh', 'a.py', 'c.pth', '2', PYTHON=python).returncode == 7
    path = f'{tmp_path}:{os.environ["PATH"]}'
    assert run('slurm_train.sh', 'p', 'j', 'a.py', PATH=path).returncode == 9


def test_scripts_can_be_called_from_any_folder(tmp_path):
    done = run('dist_train.sh', 'a.py', '2', folder=tmp_path, PYTHON=str(fake(tmp_path, 'python')))
    assert Path(done.stdout.splitlines()[5]) == TOOLS / 'train.py'
