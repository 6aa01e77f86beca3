"""Prepare a run for its launcher: `python`, `torchrun` or `srun`, on CPU, one GPU or several."""

import os
from collections.abc import Mapping, MutableMapping
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log
from torch.distributed.constants import default_pg_timeout

from ..recipe.tree import dicts_in
from .rendezvous import find_store, open_store, same_world
from .slurm import job_and_step, ports_of, slurm_to_torchrun, tasks_of_srun

LAUNCHERS = ('auto', 'none', 'pytorch', 'slurm')
OF_TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')


def prepare_launch(cfg: Config, launcher: str = 'auto', *, local_rank: int | None = None) -> None:
    """Fit `cfg` and the environment to the launcher and the available devices. Call before the Runner is built.

    With torchrun or srun, this function starts the process group. mmengine's own start-up requires CUDA, and does not
    find a free port under Slurm. The process group follows `env_cfg.dist_cfg`, but uses gloo without CUDA or NCCL.

    Args:
        cfg: A recipe. Changed in place.
        launcher: One of `LAUNCHERS`.
        local_rank: Default for LOCAL_RANK, which the predecessor of torchrun passes as an argument.

    Raises:
        ValueError: For an unknown launcher, an environment that lacks the launcher's variables or contradicts itself,
            more processes than GPUs, or a norm that needs a GPU where none is available.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher={launcher!r}: one of {", ".join(LAUNCHERS)} is expected')
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


def detect_launcher(environ: Mapping[str, str]) -> str:
    """Return 'pytorch' under torchrun, 'slurm' in an srun step of several tasks, else 'none'.

    torchrun takes precedence, since it may itself run under srun. The shell of a Slurm allocation does not count as an
    srun task.

    Raises:
        ValueError: If `environ` has a WORLD_SIZE of several processes and no rank.
    """
    if 'RANK' in environ or 'LOCAL_RANK' in environ:
        return 'pytorch'
    if environ.get('WORLD_SIZE', '1') != '1':
        raise ValueError(
            f'WORLD_SIZE={environ["WORLD_SIZE"]} without RANK: the rank of this process is unknown. Start with '
            'torchrun (tools/dist_train.sh), or unset WORLD_SIZE for a single process'
        )
    return 'slurm' if tasks_of_srun(environ) > 1 else 'none'


def say_unused_tasks(launcher: str, environ: Mapping[str, str]) -> None:
    """Log a hint if the Slurm job has several tasks, but only this process will train."""
    tasks = environ.get('SLURM_NTASKS', '1')
    if launcher == 'none' and tasks != '1':
        print_log(
            f'training in one process, although this Slurm job has {tasks} tasks: start them with srun before python'
        )


def refuse_one_of_many(environ: Mapping[str, str]) -> None:
    """Raise ValueError if torchrun started several processes, which launcher='none' would not connect."""
    if 'RANK' in environ and environ.get('WORLD_SIZE', '1') != '1':
        raise ValueError(
            f"launcher='none' in process {environ['RANK']} of {environ['WORLD_SIZE']} of torchrun: each process would "
            'train separately and overwrite the files of the others. Omit --launcher, or start with python'
        )


def become_torchrun(environ: MutableMapping[str, str]) -> dist.TCPStore | None:
    """Set torchrun's variables in an srun task.

    Returns:
        Rank 0's store at MASTER_PORT, to keep until the process group exists. None on other ranks, and if MASTER_PORT
        was already set.

    Raises:
        ValueError: Outside srun, or if the ranks do not find each other.
    """
    variables = slurm_to_torchrun(environ)
    if not tasks_of_srun(environ):
        raise ValueError(
            "launcher='slurm' in a Slurm allocation, but outside an srun task: put srun before python, or start with "
            'tools/slurm_train.sh'
        )
    store = None
    if 'MASTER_PORT' not in environ:
        job, ports = '.'.join(map(str, job_and_step(environ))), ports_of(environ)
        rank, host = int(variables['RANK']), variables['MASTER_ADDR']
        if rank == 0:
            print_log(f'srun: {variables["WORLD_SIZE"]} processes of job {job} connect to {host}')
            store = open_store(ports, job, int(variables['WORLD_SIZE']))
        port = store.port if store else find_store(host, ports, job, rank)
        variables['MASTER_PORT'] = str(port)
    environ.update(variables)
    return store


def check_torchrun(environ: Mapping[str, str]) -> None:
    """Raise ValueError unless `environ` has the variables of torchrun with consistent values."""
    missing = [name for name in OF_TORCHRUN if name not in environ]
    if missing:
        raise ValueError(
            f"launcher='pytorch' needs the variables that torchrun sets; missing: {', '.join(missing)}. Start with "
            'tools/dist_train.sh'
        )
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT'):
        if not environ[name].isdecimal():
            raise ValueError(f'{name}={environ[name]!r}: a non-negative integer is expected, as torchrun sets it')
    rank, world_size = int(environ['RANK']), int(environ['WORLD_SIZE'])
    if rank >= world_size:
        raise ValueError(
            f'RANK={rank} with WORLD_SIZE={world_size}: a rank from 0 to {world_size - 1} is expected. Start all '
            'processes with the same torchrun (tools/dist_train.sh)'
        )


def check_gpu(local_rank: int) -> None:
    """Raise ValueError if this machine does not have a GPU for each process."""
    devices = torch.cuda.device_count()
    if local_rank >= devices:
        raise ValueError(
            f'LOCAL_RANK={local_rank}: a number below the {devices} visible GPUs is expected. Start at most one '
            'process per GPU'
        )


def wrap_on_cpu(cfg: Config) -> None:
    """Configure DistributedDataParallel, or the recipe's own wrapper of that kind, for CPU."""
    asked = cfg.get('model_wrapper_cfg') or {}
    if 'DataParallel' in asked.get('type', 'DataParallel'):
        wrapper = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.model_wrapper_cfg = wrapper | asked | dict(device_ids=None)


def start_process_group(cfg: Config, on_gpu: bool) -> None:
    """Start the process group through MASTER_ADDR and MASTER_PORT."""
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
    if not dist.is_torchelastic_launched():  # torchrun gives all its processes the same WORLD_SIZE
        rank, world_size, port = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE', 'MASTER_PORT'))
        timeout = settings.get('timeout', default_pg_timeout)
        store = same_world(os.environ['MASTER_ADDR'], port, rank, world_size, timeout)
    dist.init_process_group(backend, **settings)
    del store


def refuse_sync_batch_norm(cfg: Config) -> None:
    """Raise ValueError if a recipe for several processes on CPU uses SyncBatchNorm."""
    reason = f'sync_bn={cfg.sync_bn!r}' if cfg.get('sync_bn') else None
    if any(node.get('type') in ('SyncBN', 'MMSyncBN') for node in dicts_in(cfg.get('model') or {})):
        reason = "norm_cfg type='SyncBN'"
    if reason:
        raise ValueError(
            f"{reason} needs GPUs, and none is available: use dict(type='BCN', statistics='sync'), "
            'which also shares statistics on CPU'
        )
