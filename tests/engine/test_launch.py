"""One recipe starts under python, torchrun and srun, and what cannot work is refused before the Runner is built."""

import os
import re
import socket

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config

from wsbcn_mm.engine.launch import first_host, prepare_launch, slurm_to_torchrun

SRUN = {
    'SLURM_PROCID': '9',
    'SLURM_NTASKS': '16',
    'SLURM_LOCALID': '1',
    'SLURM_NODELIST': 'gpu[03-04]',
    'SLURM_JOB_ID': '421337',
}
NO_TORCHRUN = "launcher='pytorch' needs the variables that torchrun sets: start with tools/dist_train.sh"
SYNC_BN_ON_CPU = (
    "norm_cfg type='SyncBN' runs on GPUs only, and there is none: use dict(type='BCN', statistics='sync'), "
    'which shares statistics on CPU too'
)


def clear(monkeypatch):
    for name in [n for n in os.environ if n.startswith('SLURM_')]:
        monkeypatch.delenv(name)
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)


@pytest.fixture
def bare(monkeypatch):
    """An environment of no launcher, on a machine without GPU."""
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


@pytest.mark.parametrize(
    ('nodes', 'host'),
    [
        ('localhost', 'localhost'),
        ('gpu1,gpu2', 'gpu1'),
        ('gpu[03-05,9],cpu1', 'gpu03'),
        ('gpu[7,9-11]', 'gpu7'),
        ('dgx-a100-[0012-0013]', 'dgx-a100-0012'),
        ('node[1-2]-ib', 'node1-ib'),
        ('rack[2-3]node[1-4],login', 'rack2node1'),
        ('gpu1.cluster.edu,gpu[2-3].cluster.edu', 'gpu1.cluster.edu'),
    ],
)
def test_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize('nodes', ['', ',gpu1', '[1-2'])
def test_a_node_list_without_a_host_is_refused(nodes):
    with pytest.raises(ValueError, match=f'^{re.escape(f"SLURM_NODELIST={nodes!r} names no host")}$'):
        first_host(nodes)


def test_srun_variables_become_those_of_torchrun():
    assert slurm_to_torchrun(SRUN) == {
        'RANK': '9',
        'WORLD_SIZE': '16',
        'LOCAL_RANK': '1',
        'MASTER_ADDR': 'gpu03',
        'MASTER_PORT': str(10000 + 32 * 421337 % 20000),
    }


def test_address_and_port_that_are_set_stay():
    given = slurm_to_torchrun(SRUN | {'MASTER_ADDR': '10.0.0.7', 'MASTER_PORT': '4000'})
    assert (given['MASTER_ADDR'], given['MASTER_PORT']) == ('10.0.0.7', '4000')


def test_the_nodes_of_the_step_come_before_those_of_the_job():
    assert slurm_to_torchrun(SRUN | {'SLURM_STEP_NODELIST': 'gpu04'})['MASTER_ADDR'] == 'gpu04'


def test_jobs_and_steps_have_ports_of_their_own_outside_the_ephemeral_ones():
    jobs = [SRUN | {'SLURM_JOB_ID': str(j), 'SLURM_STEP_ID': str(s)} for j in range(77_000, 77_100) for s in range(6)]
    ports = [int(slurm_to_torchrun(job)['MASTER_PORT']) for job in jobs]
    assert len(set(ports)) == len(ports)
    assert 10_000 <= min(ports) <= max(ports) < 30_000


@pytest.mark.parametrize(
    ('removed', 'named'),
    [
        (['SLURM_PROCID', 'SLURM_LOCALID'], 'SLURM_PROCID, SLURM_LOCALID'),
        (['SLURM_NODELIST'], 'SLURM_NODELIST'),
        (list(SRUN), 'SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID'),
    ],
)
def test_outside_srun_the_missing_variables_are_named(removed, named):
    message = (
        f"launcher='slurm' needs the variables of an srun task; missing: {named}. "
        'Start with tools/slurm_train.sh, or use --launcher pytorch under torchrun'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        slurm_to_torchrun({name: value for name, value in SRUN.items() if name not in removed})


def test_an_unknown_launcher_is_refused():
    with pytest.raises(ValueError, match=r"^launcher='mpi' is unknown: choose one of none, pytorch, slurm$"):
        prepare_launch(Config({}), 'mpi')


def test_one_process_needs_nothing_and_may_have_sync_bn(bare):
    cfg = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'))))
    prepare_launch(cfg, 'none')
    assert cfg.launcher == 'none'
    assert 'model_wrapper_cfg' not in cfg
    assert not dist.is_initialized()


def test_pytorch_without_torchrun_is_refused(bare):
    with pytest.raises(ValueError, match=f'^{re.escape(NO_TORCHRUN)}$'):
        prepare_launch(Config({}), 'pytorch')


@pytest.mark.parametrize('kind', ['SyncBN', 'MMSyncBN'])
def test_sync_bn_on_cpu_is_refused_wherever_it_is(kind, torchrun):
    cfg = Config(dict(model=dict(decode_head=[dict(norm_cfg=dict(type=kind))])))
    with pytest.raises(ValueError, match=f'^{re.escape(SYNC_BN_ON_CPU)}$'):
        prepare_launch(cfg, 'pytorch')
    assert not dist.is_initialized()


def test_conversion_to_sync_bn_on_cpu_is_refused(torchrun):
    message = SYNC_BN_ON_CPU.replace("norm_cfg type='SyncBN'", "sync_bn='torch'")
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare_launch(Config(dict(sync_bn='torch')), 'pytorch')


def test_a_path_that_mentions_sync_bn_is_no_norm(torchrun):
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


def test_srun_starts_as_torchrun_would(torchrun):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        torchrun.delenv(name)
    for name, value in dict(SRUN, SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_LOCALID='0').items():
        torchrun.setenv(name, value)
    cfg = Config({})
    prepare_launch(cfg, 'slurm')
    assert cfg.launcher == 'pytorch'
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
    assert os.environ['LOCAL_RANK'] == '0'


def test_more_processes_than_gpus_are_explained(torchrun):
    torchrun.setattr(torch.cuda, 'is_available', lambda: True)
    torchrun.setattr(torch.cuda, 'device_count', lambda: 4)
    torchrun.setenv('LOCAL_RANK', '4')
    message = 'process 5 of this machine has no GPU: it sees 4. Start as many processes as GPUs'
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        prepare_launch(Config({}), 'pytorch')
    torchrun.setenv('LOCAL_RANK', '3')
    cfg = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'))))
    prepare_launch(cfg, 'pytorch')
    assert 'model_wrapper_cfg' not in cfg
