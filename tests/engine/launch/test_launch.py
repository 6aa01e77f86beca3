"""One recipe starts under python, torchrun and srun; invalid combinations are rejected before the Runner is built."""

import os
import re
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config

from wsbcn_mm.engine.launch.launch import detect_launcher, prepare_launch

SRUN = dict(
    SLURM_PROCID='0',
    SLURM_NTASKS='1',
    SLURM_LOCALID='0',
    SLURM_NODELIST='localhost',
    SLURM_JOB_ID='421337',
    SLURM_STEP_ID='2',
)
SALLOC = dict(SLURM_JOB_ID='421337', SLURM_NTASKS='8', SLURM_NODELIST='gpu[03-04]')
TORCHRUN = dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='29500')
SYNC_BN_ON_CPU = (
    "norm_cfg type='SyncBN' needs GPUs, and none is available: use dict(type='BCN', statistics='sync'), "
    'which also shares statistics on CPU'
)


def clear(monkeypatch):
    for name in [n for n in os.environ if n.startswith('SLURM_')]:
        monkeypatch.delenv(name)
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)


@pytest.fixture
def bare(monkeypatch):
    """An environment without a launcher, on a machine without GPU."""
    clear(monkeypatch)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    return monkeypatch


@pytest.fixture
def torchrun(bare):
    """The environment of the only process of a torchrun."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    values = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    for name, value in values.items():
        bare.setenv(name, value)
    yield bare
    if dist.is_initialized():
        dist.destroy_process_group()


def test_an_unknown_launcher_is_rejected():
    with pytest.raises(ValueError, match=r"^launcher='mpi': one of auto, none, pytorch, slurm is expected$"):
        prepare_launch(Config({}), 'mpi')


@pytest.mark.parametrize(
    ('environ', 'launcher'),
    [
        ({}, 'none'),
        (TORCHRUN, 'pytorch'),
        (TORCHRUN | dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0'), 'pytorch'),
        (dict(WORLD_SIZE='1'), 'none'),
        (SRUN, 'none'),
        (SRUN | dict(SLURM_NTASKS='2'), 'slurm'),
        # The step of this srun has fewer tasks than the job.
        (SRUN | dict(SLURM_NTASKS='8', SLURM_STEP_NUM_TASKS='1'), 'none'),
        (SRUN | dict(SLURM_NTASKS='2') | TORCHRUN, 'pytorch'),
        (SALLOC, 'none'),
        # The script of sbatch runs outside any step; salloc may open its shell in a step that Slurm reserves.
        (SALLOC | dict(SLURM_PROCID='0', SLURM_LOCALID='0'), 'none'),
        (SALLOC | dict(SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_STEP_ID=str(0xFFFFFFFB)), 'none'),
        (SALLOC | dict(SLURM_PROCID='0', SLURM_STEP_ID=str(0xFFFFFFFA), SLURM_STEP_NUM_TASKS='1'), 'none'),
    ],
)
def test_the_environment_determines_the_launcher(environ, launcher):
    assert detect_launcher(environ) == launcher


def test_a_world_without_a_rank_is_explained():
    message = (
        'WORLD_SIZE=4 without RANK: the rank of this process is unknown. Start with torchrun '
        '(tools/dist_train.sh), or unset WORLD_SIZE for a single process'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        detect_launcher(dict(WORLD_SIZE='4'))


def test_unused_tasks_of_a_slurm_job_are_logged(bare, capsys):
    for name, value in SALLOC.items():
        bare.setenv(name, value)
    prepare_launch(Config({}))
    assert capsys.readouterr().out == (
        'training in one process, although this Slurm job has 8 tasks: start them with srun before python\n'
    )


def test_slurm_outside_srun_is_explained(bare):
    for name, value in (SRUN | SALLOC | dict(SLURM_STEP_ID=str(0xFFFFFFFA))).items():
        bare.setenv(name, value)
    message = (
        "launcher='slurm' in a Slurm allocation, but outside an srun task: put srun before python, or start with "
        'tools/slurm_train.sh'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare_launch(Config({}), 'slurm')


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (
            dict(RANK='2'),
            'RANK=2 with WORLD_SIZE=2: a rank from 0 to 1 is expected. Start all processes with the same torchrun '
            '(tools/dist_train.sh)',
        ),
        (dict(RANK='one'), "RANK='one': a non-negative integer is expected, as torchrun sets it"),
        (dict(LOCAL_RANK='-1'), "LOCAL_RANK='-1': a non-negative integer is expected, as torchrun sets it"),
    ],
)
def test_variables_that_contradict_each_other_are_explained(changed, message, bare):
    for name, value in (TORCHRUN | changed).items():
        bare.setenv(name, value)
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare_launch(Config({}))
    assert not dist.is_initialized()


def test_no_launcher_in_one_process_of_many_is_rejected(bare):
    for name, value in TORCHRUN.items():
        bare.setenv(name, value)
    message = (
        "launcher='none' in process 1 of 2 of torchrun: each process would train separately and overwrite the files of "
        'the others. Omit --launcher, or start with python'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare_launch(Config({}), 'none')


@pytest.mark.parametrize('launcher', ['none', 'auto'])
def test_one_process_needs_nothing_and_may_have_sync_bn(launcher, bare):
    cfg = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'))))
    prepare_launch(cfg, launcher)
    assert cfg.launcher == 'none'
    assert 'model_wrapper_cfg' not in cfg
    assert not dist.is_initialized()


@pytest.mark.parametrize('missing', [list(TORCHRUN), ['LOCAL_RANK'], ['RANK', 'MASTER_PORT']])
def test_missing_variables_of_torchrun_are_named(missing, bare):
    for name in set(TORCHRUN) - set(missing):
        bare.setenv(name, TORCHRUN[name])
    message = (
        f"launcher='pytorch' needs the variables that torchrun sets; missing: {', '.join(missing)}. Start with "
        'tools/dist_train.sh'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare_launch(Config({}), 'pytorch')


def test_the_local_rank_may_come_as_an_argument(torchrun):
    torchrun.delenv('LOCAL_RANK')
    prepare_launch(Config({}), local_rank=0)
    assert os.environ['LOCAL_RANK'] == '0'
    assert dist.is_initialized()


def test_the_process_group_is_that_of_the_recipe(torchrun):
    asked = []
    torchrun.setattr(dist, 'init_process_group', lambda backend, **settings: asked.append((backend, settings)))
    recipe = dict(env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=90)))
    settings = dict(timeout=timedelta(seconds=90))
    prepare_launch(Config(recipe))
    torchrun.setattr(torch.cuda, 'is_available', lambda: True)
    torchrun.setattr(torch.cuda, 'device_count', lambda: 1)
    torchrun.setattr(torch.cuda, 'set_device', asked.append)
    for there in (True, False):
        torchrun.setattr(dist, 'is_nccl_available', lambda there=there: there)
        prepare_launch(Config(recipe))
    assert asked == [('gloo', settings), 0, ('nccl', settings), 0, ('gloo', settings)]


@pytest.mark.parametrize('kind', ['SyncBN', 'MMSyncBN'])
def test_sync_bn_on_cpu_is_rejected_anywhere_in_the_model(kind, torchrun):
    cfg = Config(dict(model=dict(decode_head=[dict(norm_cfg=dict(type=kind))])))
    with pytest.raises(ValueError, match=f'^{re.escape(SYNC_BN_ON_CPU)}$'):
        prepare_launch(cfg, 'pytorch')
    assert not dist.is_initialized()


def test_conversion_to_sync_bn_on_cpu_is_rejected(torchrun):
    message = SYNC_BN_ON_CPU.replace("norm_cfg type='SyncBN'", "sync_bn='torch'")
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare_launch(Config(dict(sync_bn='torch')), 'pytorch')


def test_a_path_that_mentions_sync_bn_does_not_count_as_a_norm(torchrun):
    prepare_launch(Config(dict(work_dir='work_dirs/against_SyncBN', model=dict(type='SyncBNFree'))), 'pytorch')
    assert dist.is_initialized()


def test_cpu_processes_meet_through_gloo(torchrun):
    cfg = Config(dict(find_unused_parameters=True))
    prepare_launch(cfg, 'pytorch')
    assert dist.get_backend() == 'gloo'
    assert cfg.launcher == 'pytorch'
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, device_ids=None
    )


def test_a_wrapper_of_the_recipe_stays(torchrun):
    cfg = Config(dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', static_graph=True)))
    prepare_launch(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg.static_graph is True
    assert cfg.model_wrapper_cfg.device_ids is None


def test_a_sharding_wrapper_gets_its_hook_and_nothing_of_data_parallel(torchrun):
    hooks = [dict(type='NormReportHook')]
    cfg = Config(dict(model_wrapper_cfg=dict(type='FullyShard'), custom_hooks=hooks, find_unused_parameters=True))
    prepare_launch(cfg)
    assert cfg.model_wrapper_cfg == dict(type='FullyShard')
    assert cfg.custom_hooks == [*hooks, dict(type='FullyShardHook')]


def test_srun_starts_as_torchrun_would(torchrun):
    for name in TORCHRUN:
        torchrun.delenv(name)
    for name, value in SRUN.items():
        torchrun.setenv(name, value)
    cfg = Config({})
    prepare_launch(cfg, 'slurm')
    assert cfg.launcher == 'pytorch'
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
    assert os.environ['LOCAL_RANK'] == '0'


def test_a_port_that_is_set_is_taken(torchrun):
    port = os.environ['MASTER_PORT']
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        torchrun.delenv(name)
    for name, value in SRUN.items():
        torchrun.setenv(name, value)
    prepare_launch(Config({}), 'slurm')
    assert dist.is_initialized()
    assert os.environ['MASTER_PORT'] == port


def test_more_processes_than_gpus_are_explained(torchrun):
    torchrun.setattr(torch.cuda, 'is_available', lambda: True)
    torchrun.setattr(torch.cuda, 'device_count', lambda: 4)
    torchrun.setenv('LOCAL_RANK', '4')
    message = 'LOCAL_RANK=4: a number below the 4 visible GPUs is expected. Start at most one process per GPU'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare_launch(Config({}), 'pytorch')
    torchrun.setenv('LOCAL_RANK', '3')
    torchrun.setattr(torch.cuda, 'set_device', lambda device: None)
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='gloo')), model=dict(norm_cfg=dict(type='SyncBN'))))
    prepare_launch(cfg, 'pytorch')
    assert 'model_wrapper_cfg' not in cfg
    assert dist.get_backend() == 'gloo'
