"""Start processes the same way on CPU, on one GPU and on many: `none`, `pytorch` (torchrun) or `slurm` (srun)."""

import os
import re
from collections.abc import Mapping

import torch
import torch.distributed as dist
from mmengine.config import Config

LAUNCHERS = ('none', 'pytorch', 'slurm')


def slurm_to_torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables torchrun would set, from those srun sets.

    The port comes from the job id, so that two jobs on one host do not meet; MASTER_ADDR and MASTER_PORT that are set
    already stay.

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
    return {
        'RANK': environ['SLURM_PROCID'],
        'WORLD_SIZE': environ['SLURM_NTASKS'],
        'LOCAL_RANK': environ['SLURM_LOCALID'],
        'MASTER_ADDR': environ.get('MASTER_ADDR', first_host(nodes)),
        'MASTER_PORT': environ.get('MASTER_PORT', str(15000 + job % 20000)),
    }


def first_host(nodes: str) -> str:
    """First host of a Slurm node list: 'gpu[03-05,9],cpu1' -> 'gpu03'."""
    match = re.match(r'([^,\[]+)(?:\[(\w+))?', nodes)
    if match is None:
        raise ValueError(f'SLURM_NODELIST={nodes!r} names no host')
    return match[1] + (match[2] or '')


def prepare_launch(cfg: Config, launcher: str) -> None:
    """Make `cfg` and the environment fit the launcher and the devices at hand. Call before the Runner is built.

    Without CUDA the process group is started here with gloo, since mmengine's own start-up takes CUDA for granted.

    Raises:
        ValueError: For an unknown launcher, an environment that is not the launcher's, or a norm that needs a GPU.
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
        return
    if 'SyncBN' in cfg.pretty_text:
        raise ValueError(
            "norm_cfg type='SyncBN' runs on GPUs only, and there is none: use dict(type='BCN', statistics='sync'), "
            'which shares statistics on CPU too'
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
