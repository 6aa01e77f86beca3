"""Start processes the same way on CPU, on one GPU and on many: by `python`, `torchrun` or `srun`."""

import os
from collections.abc import Mapping, MutableMapping
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log
from torch.distributed.constants import default_pg_timeout

from ..recipe.tree import dicts_in
from .slurm import find_store, job_and_step, open_store, ports_of, same_world, slurm_to_torchrun, tasks_of_srun

LAUNCHERS = ('auto', 'none', 'pytorch', 'slurm')
OF_TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def detect_launcher(environ: Mapping[str, str]) -> str:
    """'pytorch' under torchrun, 'slurm' in an srun step of several tasks, else 'none'.

    torchrun comes first, since it may itself run under srun. A shell that Slurm gave out is no srun task.

    Raises:
        ValueError: If `environ` has a world of several processes, but not which of them this is.
    """
    if 'RANK' in environ or 'LOCAL_RANK' in environ:
        return 'pytorch'
    if environ.get('WORLD_SIZE', '1') != '1':
        raise ValueError(
            f'WORLD_SIZE={environ["WORLD_SIZE"]} without RANK: this process does not know which one it is. Start with '
            'torchrun (tools/dist_train.sh), or unset WORLD_SIZE for a single process'
        )
    return 'slurm' if tasks_of_srun(environ) > 1 else 'none'


def prepare_launch(cfg: Config, launcher: str = 'auto', *, local_rank: int | None = None) -> None:
    """Make `cfg` and the environment fit the launcher and the devices at hand. Call before the Runner is built.

    With several processes their process group is started here: mmengine's own start-up takes CUDA for granted, and
    finds no free port under Slurm. It is of `env_cfg.dist_cfg`, but gloo without CUDA or without NCCL.

    Args:
        cfg: A recipe. Changed in place.
        launcher: One of `LAUNCHERS`.
        local_rank: What the predecessor of torchrun gives as an argument, for LOCAL_RANK where that is not set.

    Raises:
        ValueError: For an unknown launcher, an environment that is not the launcher's or contradicts itself, more
            processes than GPUs, or a norm that needs a GPU where there is none.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher={launcher!r} is unknown: choose one of {", ".join(LAUNCHERS)}')
    if local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if launcher == 'auto':
        launcher = detect_launcher(os.environ)
        say_unused_tasks(launcher, os.environ)
    cfg.launcher = 'none' if launcher == 'none' else 'pytorch'
    if launcher == 'none':
        refuse_one_of_many(os.environ)
        return
    store = become_torchrun(os.environ) if launcher == 'slurm' else None
    check_torchrun(os.environ)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        check_gpu(int(os.environ['LOCAL_RANK']))
    else:
        refuse_sync_batch_norm(cfg)
        wrap_on_cpu(cfg)
    if (cfg.get('model_wrapper_cfg') or {}).get('type') == 'FullyShard':
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='FullyShardHook')]
    if not dist.is_initialized():
        start_process_group(cfg, on_gpu)
    del store


def say_unused_tasks(launcher: str, environ: Mapping[str, str]) -> None:
    """Say it where Slurm gave the job several tasks, and this process will train alone."""
    tasks = environ.get('SLURM_NTASKS', '1')
    if launcher == 'none' and tasks != '1':
        print_log(f'one process trains: Slurm has {tasks} tasks for this job, which start with srun before python')


def refuse_one_of_many(environ: Mapping[str, str]) -> None:
    """Raise ValueError where torchrun started several processes that would not know of each other."""
    if 'RANK' in environ and environ.get('WORLD_SIZE', '1') != '1':
        raise ValueError(
            f"launcher='none' in process {environ['RANK']} of {environ['WORLD_SIZE']} that torchrun started: each "
            'would train by itself and write over the others. Leave --launcher out, or start with python'
        )


def become_torchrun(environ: MutableMapping[str, str]) -> dist.TCPStore | None:
    """Set torchrun's variables in an srun task.

    Returns:
        Rank 0's store at MASTER_PORT, to be kept until the process group is there; None on other ranks, and where
        MASTER_PORT was set already.

    Raises:
        ValueError: Outside srun, or if the ranks do not meet.
    """
    variables = slurm_to_torchrun(environ)
    if not tasks_of_srun(environ):
        raise ValueError(
            "launcher='slurm' in a shell that Slurm gave out, not in an srun task: put srun before python, or start "
            'with tools/slurm_train.sh'
        )
    store = None
    if 'MASTER_PORT' not in environ:
        job, ports = '.'.join(map(str, job_and_step(environ))), ports_of(environ)
        rank, host = int(variables['RANK']), variables['MASTER_ADDR']
        if rank == 0:
            print_log(f'srun: {variables["WORLD_SIZE"]} processes of job {job} meet on {host}')
            store = open_store(ports, job, int(variables['WORLD_SIZE']))
        port = store.port if store else find_store(host, ports, job, rank)
        variables['MASTER_PORT'] = str(port)
    environ.update(variables)
    return store


def check_torchrun(environ: Mapping[str, str]) -> None:
    """Raise ValueError unless `environ` has what torchrun sets, and it agrees."""
    missing = [name for name in OF_TORCHRUN if name not in environ]
    if missing:
        raise ValueError(
            f"launcher='pytorch' needs the variables that torchrun sets; missing: {', '.join(missing)}. Start with "
            'tools/dist_train.sh'
        )
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT'):
        if not environ[name].isdecimal():
            raise ValueError(f'{name}={environ[name]!r} is no number from 0 on: torchrun would have set one')
    rank, world_size = int(environ['RANK']), int(environ['WORLD_SIZE'])
    if rank >= world_size:
        raise ValueError(
            f'RANK={rank} with WORLD_SIZE={world_size}: ranks go from 0 to {world_size - 1}. Start all processes with '
            'the same torchrun (tools/dist_train.sh)'
        )


def check_gpu(local_rank: int) -> None:
    """Raise ValueError if this process has no GPU to itself."""
    devices = torch.cuda.device_count()
    if local_rank >= devices:
        raise ValueError(
            f'process {local_rank + 1} of this machine has no GPU: it sees {devices}. Start as many processes as GPUs'
        )


def wrap_on_cpu(cfg: Config) -> None:
    """Let DistributedDataParallel, or a wrapper of its kind that the recipe names, expect no GPU."""
    asked = cfg.get('model_wrapper_cfg') or {}
    if 'DataParallel' in asked.get('type', 'DataParallel'):
        wrapper = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.model_wrapper_cfg = wrapper | asked | dict(device_ids=None)


def start_process_group(cfg: Config, on_gpu: bool) -> None:
    """Let all processes meet at MASTER_ADDR and MASTER_PORT."""
    settings = dict((cfg.get('env_cfg') or {}).get('dist_cfg') or {})
    backend = settings.pop('backend', 'nccl')
    settings.pop('init_backend', None)
    if 'timeout' in settings:
        settings['timeout'] = timedelta(seconds=settings['timeout'])
    if backend == 'nccl' and not (on_gpu and dist.is_nccl_available()):
        backend = 'gloo'
    if on_gpu:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    store = None
    if not dist.is_torchelastic_launched():  # torchrun has told all its processes the same
        rank, world_size, port = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE', 'MASTER_PORT'))
        timeout = settings.get('timeout', default_pg_timeout)
        store = same_world(os.environ['MASTER_ADDR'], port, rank, world_size, timeout)
    dist.init_process_group(backend, **settings)
    del store


def refuse_sync_batch_norm(cfg: Config) -> None:
    """Raise ValueError where several processes on CPU would meet a SyncBatchNorm."""
    reason = f'sync_bn={cfg.sync_bn!r}' if cfg.get('sync_bn') else None
    if any(node.get('type') in ('SyncBN', 'MMSyncBN') for node in dicts_in(cfg.get('model') or {})):
        reason = "norm_cfg type='SyncBN'"
    if reason:
        raise ValueError(
            f"{reason} runs on GPUs only, and there is none: use dict(type='BCN', statistics='sync'), "
            'which shares statistics on CPU too'
        )
