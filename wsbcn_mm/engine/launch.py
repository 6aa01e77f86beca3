"""Start processes the same way on CPU, on one GPU and on many: `none`, `pytorch` (torchrun) or `slurm` (srun)."""

import os
import re
from collections.abc import Mapping

import torch
import torch.distributed as dist
from mmengine.config import Config

from .recipe import dicts_in

LAUNCHERS = ('none', 'pytorch', 'slurm')


def slurm_to_torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables torchrun would set, from those srun sets.

    The port comes from the job and step ids, so that two of them on one host do not meet; MASTER_ADDR and MASTER_PORT
    that are set already stay.

    Raises:
        ValueError: If `environ` is not that of an srun task.
    """
    missing = [name for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID') if name not in environ]
    nodes = environ.get('SLURM_STEP_NODELIST') or environ.get('SLURM_NODELIST') or environ.get('SLURM_JOB_NODELIST')
    if missing or not nodes:
        raise ValueError(
            f"launcher='slurm' needs the variables of an srun task; missing: {', '.join(missing) or 'SLURM_NODELIST'}. "
            'Start with tools/slurm_train.sh, or use --launcher pytorch under torchrun'
        )
    job = int(environ.get('SLURM_JOB_ID') or environ.get('SLURM_JOBID') or 0)
    step = int(environ.get('SLURM_STEP_ID') or environ.get('SLURM_STEPID') or 0)
    return {
        'RANK': environ['SLURM_PROCID'],
        'WORLD_SIZE': environ['SLURM_NTASKS'],
        'LOCAL_RANK': environ['SLURM_LOCALID'],
        'MASTER_ADDR': environ.get('MASTER_ADDR', first_host(nodes)),
        'MASTER_PORT': environ.get('MASTER_PORT', str(10000 + (32 * job + step) % 20000)),
    }


def first_host(nodes: str) -> str:
    """First host of a Slurm node list: 'gpu[03-05,9],cpu1' -> 'gpu03', 'rack[2-3]node[1-4]-ib' -> 'rack2node1-ib'."""
    match = re.match(r'(?:[^,\[\]]|\[\w[^\]]*\])+', nodes)
    if match is None:
        raise ValueError(f'SLURM_NODELIST={nodes!r} names no host')
    return re.sub(r'\[(\w+)[^\]]*\]', r'\1', match[0])


def prepare_launch(cfg: Config, launcher: str) -> None:
    """Make `cfg` and the environment fit the launcher and the devices at hand. Call before the Runner is built.

    Without CUDA the process group is started here with gloo, since mmengine's own start-up takes CUDA for granted.

    Raises:
        ValueError: For an unknown launcher, an environment that is not the launcher's, more processes than GPUs, or
            a norm that needs a GPU where there is none.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f'launcher={launcher!r} is unknown: choose one of {", ".join(LAUNCHERS)}')
    cfg.launcher = launcher
    if launcher == 'none':
        return
    if launcher == 'slurm':
        os.environ.update(slurm_to_torchrun(os.environ))
        cfg.launcher = 'pytorch'
    if 'RANK' not in os.environ:
        raise ValueError("launcher='pytorch' needs the variables that torchrun sets: start with tools/dist_train.sh")
    if torch.cuda.is_available():
        local, devices = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
        if local >= devices:
            raise ValueError(
                f'process {local + 1} of this machine has no GPU: it sees {devices}. Start as many processes as GPUs'
            )
        return
    refuse_sync_batch_norm(cfg)
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = wrapper | (cfg.get('model_wrapper_cfg') or {}) | dict(device_ids=None)


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
