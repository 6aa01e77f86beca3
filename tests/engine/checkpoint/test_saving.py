"""Checkpoints under kills, full disks and damage: real Runners, real files, real signals."""

import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import socket
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint
from torch import nn
from torch.utils.data import Dataset

from wsbcn_mm.engine.checkpoint.damage import damage_in
from wsbcn_mm.engine.checkpoint.folder_lock import occupy
from wsbcn_mm.engine.checkpoint.saving import SafeCheckpointHook
from wsbcn_mm.engine.checkpoint.selection import checkpoints_to_resume
from wsbcn_mm.engine.files import write_atomically
from wsbcn_mm.engine.scalar_log import ScalarLog

KILLS = 25


class Points(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(inputs=torch.ones(2))


class Model(BaseModel):
    """The weight is the number of optimizer steps; the ballast makes files of a megabyte."""

    def __init__(self):
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(1))
        self.register_buffer('ballast', torch.zeros(250_000))

    def forward(self, inputs, mode='tensor'):
        return dict(loss=-self.steps.sum()) if mode == 'loss' else self.steps


class At(Hook):
    """Do something before an iteration, counted from 1."""

    def __init__(self, **actions):
        self.actions = {int(name.removeprefix('iter')): action for name, action in actions.items()}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.actions.get(runner.iter + 1, lambda runner: None)(runner)


RUNS = iter(range(1000))


def run(folder, iterations, *, actions=None, resume=False, load_from=None, checkpoint='SafeCheckpointHook', **keep):
    return Runner(
        Model(),
        str(folder),
        train_dataloader=dict(
            batch_size=1,
            dataset=Points(),
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0, momentum=0.0)),
        param_scheduler=[dict(type='LinearLR', start_factor=1.0, end_factor=1.0, by_epoch=False, end=iterations)],
        default_hooks=dict(checkpoint=dict(type=checkpoint, by_epoch=False, interval=1, **keep)),
        custom_hooks=[At(**(actions or {}))],
        log_processor=dict(by_epoch=False),
        log_level='WARNING',
        experiment_name=f'safe{next(RUNS)}',
        cfg=dict(resume=resume, load_from=load_from),
        resume=resume,
        load_from=load_from,
    )


def hook_of(runner):
    return next(hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook))


def log_of(runner):
    return ''.join(file.read_text() for file in Path(runner.work_dir).glob('*/*.log'))


def names(folder):
    files = {path.name for path in folder.iterdir() if path.is_file() and path.suffix != '.py'}
    return sorted(files - {'.in_use'})


@pytest.fixture
def small_files():
    """(limit files to half a megabyte, lift the limit), which simulates a full disk and a cleared one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield (
        lambda runner=None: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1])),
        lambda runner=None: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The work_dir of three iterations with their three checkpoints."""
    folder = tmp_path_factory.mktemp('trained')
    with DefaultScope.overwrite_default_scope('mmengine'):  # restores the scope that the Runner sets
        run(folder, 3).train()
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """The checkpoints of `trained`, copied to another folder."""
    for name in ('iter_1.pth', 'iter_2.pth', 'iter_3.pth'):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
    return tmp_path


def save_for_ever(runner, start):
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    hook = hook_of(runner)
    hook.keep_ckpt_ids = deque([start - 1])
    for step in range(start, 10**6):
        nn.init.constant_(runner.model.steps, step)
        nn.init.constant_(runner.model.ballast, step)
        hook._save_checkpoint_with_step(runner, step, dict(epoch=0, iter=step))


def test_a_process_killed_while_it_saves_leaves_an_intact_checkpoint(tmp_path):
    """The process keeps a single checkpoint and is killed at random moments while it saves, or between two saves."""
    runner = run(tmp_path, 1, max_keep_ckpts=1)
    runner.train()
    fork = multiprocessing.get_context('fork')
    moments = random.Random(0)
    last, interrupted = 1, 0
    for _ in range(KILLS):
        child = fork.Process(target=save_for_ever, args=(runner, last + 1))
        child.start()
        time.sleep(moments.uniform(0.01, 0.1))
        child.kill()
        child.join()
        assert child.exitcode == -9
        file = find_latest_checkpoint(str(tmp_path))
        checkpoint = torch.load(file, weights_only=True)
        step = checkpoint['meta']['iter']
        assert file == str(tmp_path / f'iter_{step}.pth')
        assert checkpoint['state_dict']['ballast'].eq(float(step) if step > 1 else 0.0).all()
        assert step >= last
        last = step
        interrupted += any(tmp_path.glob('.*.partial'))
        for path in tmp_path.glob('iter_*.pth'):
            assert damage_in(path) is None
    resumed = run(tmp_path, last + 1, resume=True, max_keep_ckpts=1)
    resumed.train()
    assert resumed.model.steps.item() == checkpoint['state_dict']['steps'].item() + 1
    assert last > 1 or interrupted, 'no kill hit a process while it saved'
    assert not list(tmp_path.glob('.*.partial'))


def hold(folder, held, done):
    with occupy(folder):
        (Path(folder) / '.iter_2.pth.7.partial').touch()
        held.set()
        done.wait()


def test_a_second_run_in_a_folder_is_rejected(tmp_path):
    fork = multiprocessing.get_context('fork')
    held, done = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(tmp_path, held, done))
    other.start()
    held.wait()
    message = (
        f'{tmp_path} is in use: process {other.pid} on {socket.gethostname()} trains there, and two runs would mix '
        'their checkpoints. Use another --work-dir, or stop that run first'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        run(tmp_path, 1).train()
    assert list(tmp_path.glob('.*.partial')), 'it removed a file that the other run is writing'
    assert not list(tmp_path.glob('*.pth'))
    other.kill()
    other.join()
    run(tmp_path, 1).train()
    assert names(tmp_path) == ['iter_1.pth', 'last_checkpoint']


def test_a_full_disk_is_survived(tmp_path, small_files):
    fill, clear = small_files
    seen = []
    actions = dict(iter2=fill, iter3=lambda runner: seen.append((names(tmp_path), find_latest_checkpoint(tmp_path))))
    actions['iter4'] = clear
    runner = run(tmp_path, 4, actions=actions, max_keep_ckpts=1)
    runner.train()
    assert seen == [(['iter_1.pth', 'last_checkpoint'], str(tmp_path / 'iter_1.pth'))]
    message = (
        f'{tmp_path}/iter_2.pth could not be written (File too large): free disk space. Earlier checkpoints are '
        'intact, and training continues'
    )
    assert message in log_of(runner)
    assert names(tmp_path) == ['iter_4.pth', 'last_checkpoint']
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=True)
    assert checkpoint['message_hub']['runtime_info']['keep_ckpt_ids'] == [4]


def test_the_log_of_scalars_survives_a_full_disk(tmp_path, small_files):
    log = ScalarLog(save_dir=str(tmp_path))
    log.add_scalars(dict(loss=1.0), step=1, file_path='run.json')
    size, (_, most) = (tmp_path / 'scalars.json').stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, most))
    for step in (2, 3):
        log.add_scalars(dict(loss=2.0), step=step)
    _, clear = small_files
    clear()
    log.add_scalar('loss', 4.0, step=4)
    lines = (tmp_path / 'scalars.json').read_text().splitlines()
    assert [json.loads(line)['step'] for line in lines] == [1, 4]
    runtime = Config.fromfile(Path(__file__).parents[3] / 'configs' / '_base_' / 'default_runtime.py')
    assert runtime.visualizer.vis_backends == [dict(type='ScalarLog')]


def test_a_run_whose_last_checkpoint_is_not_on_the_disk_ends_with_an_error(tmp_path, small_files):
    fill, _ = small_files
    message = (
        f'the last checkpoint of this run is not on the disk: {tmp_path}/iter_2.pth could not be written '
        '(File too large)'
    )
    with pytest.raises(OSError, match=f'^{re.escape(message)}$'):
        run(tmp_path, 2, actions=dict(iter2=fill), max_keep_ckpts=1).train()
    assert torch.load(find_latest_checkpoint(tmp_path), weights_only=True)['meta']['iter'] == 1


def test_an_error_other_than_a_full_disk_stops_the_run(tmp_path):
    (tmp_path / 'iter_1.pth').mkdir()
    with pytest.raises(IsADirectoryError):
        run(tmp_path, 1).train()


def test_the_best_checkpoint_stays_until_a_better_one_is_written(tmp_path, small_files):
    fill, clear = small_files
    runner = run(tmp_path, 1, save_best='acc', rule='greater')
    runner.train()
    hook = hook_of(runner)
    hook._save_best_checkpoint(runner, dict(acc=0.5))
    fill()
    runner.train_loop._iter = 2
    hook._save_best_checkpoint(runner, dict(acc=0.7))
    clear()
    assert runner.message_hub.get_info('best_score') == 0.5
    assert [name for name in names(tmp_path) if name.startswith('best')] == ['best_acc_iter_1.pth']
    hook._save_best_checkpoint(runner, dict(acc=0.4))
    assert hook.best_ckpt_path == str(tmp_path / 'best_acc_iter_1.pth')
    runner.train_loop._iter = 3
    hook._save_best_checkpoint(runner, dict(acc=0.6))
    assert [name for name in names(tmp_path) if name.startswith('best')] == ['best_acc_iter_3.pth']
    saved = torch.load(tmp_path / 'iter_3.pth', weights_only=True)['message_hub']['runtime_info']
    assert (saved['best_score'], saved['best_ckpt']) == (0.6, str(tmp_path / 'best_acc_iter_3.pth'))


def test_checkpoints_are_plain_and_resumable(trained, tmp_path):
    checkpoint = torch.load(trained / 'iter_2.pth', weights_only=True)
    assert checkpoint.keys() == {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}
    assert checkpoint['state_dict']._metadata == Model().state_dict()._metadata
    runner = run(tmp_path, 4, resume=True, load_from=str(trained / 'iter_2.pth'))
    runner.train()
    assert runner.model.steps.item() == 4
    losses = runner.message_hub.log_scalars['train/loss']
    assert isinstance(losses, HistoryBuffer)
    assert losses.data[0].tolist() == [0.0, -1.0, -2.0, -3.0]


def test_values_that_are_not_plain_are_left_out_and_logged(tmp_path):
    note = dict(iter1=lambda runner: runner.message_hub.update_info('idea', {'why': Points(), 'what': np.float32(2)}))
    runner = run(tmp_path, 1, actions=note)
    runner.train()
    message = (
        '1 entries are not saved, because they are neither tensors nor plain data, and loading them would run code: '
        f'message_hub.runtime_info.idea.why ({Points.__module__}.Points)'
    )
    assert message in log_of(runner)
    saved = torch.load(tmp_path / 'iter_1.pth', weights_only=True)['message_hub']['runtime_info']
    assert saved['idea'] == {'what': 2.0}


def test_checkpoints_of_mmengines_own_hook_are_resumed(tmp_path):
    run(tmp_path / 'stock', 1, checkpoint='CheckpointHook').train()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'stock' / 'iter_1.pth', weights_only=True)
    runner = run(tmp_path / 'ours', 2, resume=True, load_from=str(tmp_path / 'stock' / 'iter_1.pth'))
    runner.train()
    assert runner.message_hub.log_scalars['train/loss'].data[0].tolist() == [0.0, -1.0]


class Harm:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('harm', ['call', 'getattr'])
def test_a_pickle_with_code_is_rejected_and_does_not_run(harm, tmp_path):
    target = tmp_path / 'harmed'
    code = Harm(os.mkdir, str(target)) if harm == 'call' else Harm(getattr, np.ndarray, 'tofile')
    path = tmp_path / 'code.pth'
    torch.save({'state_dict': Model().state_dict(), 'code': code}, path)
    with pytest.raises(ValueError, match=rf'^{path} needs code to be read, .* tools/convert_checkpoint.py --trust'):
        run(tmp_path / 'run', 1, load_from=str(path)).train()
    assert not target.exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200_000])
    return r'the archive is corrupt: File is not a zip file'


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return r'.+ does not match its checksum'


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))
    return r"it starts with b'\\x00\\x00\\x00\\x00', unlike files of torch.save"


def empty(path):
    path.write_bytes(b'')
    return 'it is empty'


@pytest.mark.parametrize('hurt', [truncate, flip, zero, empty])
def test_a_damaged_checkpoint_is_distinguished_from_an_intact_one(hurt, copied):
    path = copied / 'iter_3.pth'
    assert damage_in(path) is None
    reason = hurt(path)
    message = (
        rf'^checkpoint {path} is damaged: {reason}\. Latest intact checkpoint in its folder: {copied}/iter_2\.pth$'
    )
    with pytest.raises(ValueError, match=message):
        CheckpointLoader.load_checkpoint(str(path))


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(copied):
    flip(copied / 'iter_3.pth')
    runner = run(copied, 3, resume=True)
    runner.train()
    assert f'checkpoint {copied}/iter_3.pth is damaged' in log_of(runner)
    assert f'resuming from {copied}/iter_2.pth instead of the last checkpoint ({copied}/iter_3.pth)' in log_of(runner)
    assert runner.model.steps.item() == 3
    assert damage_in(copied / 'iter_3.pth') is None


def test_a_run_without_an_intact_checkpoint_does_not_start_over(copied):
    for path in copied.glob('*.pth'):
        empty(path)
    message = (
        f'no checkpoint in {copied} is intact (3 damaged), so the run cannot resume. To start from the beginning, use '
        'another --work-dir or omit --resume'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        run(copied, 4, resume=True).train()


def test_a_run_with_nothing_to_resume_logs_that_it_starts_from_the_beginning(tmp_path):
    (tmp_path / 'iter_9.pth').mkdir()
    runner = run(tmp_path, 1, resume=True)
    runner.train()
    message = f'{tmp_path} has no checkpoint to resume from: the run starts from the beginning'
    assert message in log_of(runner)


def test_those_before_a_damaged_checkpoint_come_before_those_of_a_longer_run(copied):
    (copied / 'last_checkpoint').write_text(f'{copied}/iter_2.pth')
    assert [path.name for path in checkpoints_to_resume(copied)] == ['iter_2.pth', 'iter_1.pth', 'iter_3.pth']
    flip(copied / 'iter_2.pth')
    runner = run(copied, 3, resume=True)
    runner.call_hook('before_run')
    assert find_latest_checkpoint(str(copied)) == f'{copied}/iter_1.pth'


@pytest.mark.parametrize('content', [None, '', '/gone/iter_3.pth'])
def test_a_run_that_was_moved_or_lost_its_last_checkpoint_file_resumes(content, copied):
    if content is None:
        (copied / 'last_checkpoint').unlink()
    else:
        (copied / 'last_checkpoint').write_text(content)
    runner = run(copied, 3, resume=True)
    runner.call_hook('before_run')
    assert find_latest_checkpoint(str(copied)) == str(copied / 'iter_3.pth')


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, small_files):
    fill, clear = small_files
    write_atomically(tmp_path / 'file', b'before')
    fill()
    with pytest.raises(OSError, match='File too large'):
        write_atomically(tmp_path / 'file', bytes(600_000))
    clear()
    assert names(tmp_path) == ['file']
    assert (tmp_path / 'file').read_bytes() == b'before'
