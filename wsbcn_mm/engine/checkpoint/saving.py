"""Write checkpoints atomically, as plain data, and never delete the last good one."""

import fcntl
import os
import socket
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from .. import scalar_log as _scalar_log  # noqa: F401 - registers the log that recipes name
from ..files import NO_ROOM, remove_partial_files, write_atomically
from .reading import checkpoints_to_resume, first_whole, named_last

IN_USE = '.in_use'
"""File that a training run locks in its folder."""


SCALARS: tuple[type, ...] = (bool, int, float, complex, str, bytes)


LEFT_OUT = object()


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with the same arguments, for runs that may be killed at any moment.

    * Checkpoints are written atomically. A new checkpoint is complete on the disk before `last_checkpoint` names it,
      and an older one is removed only after that (mmengine removes first). So `max_keep_ckpts` + 1 checkpoints need
      room.
    * Checkpoints hold only tensors and plain data, and load under `torch.load(weights_only=True)`.
    * If the disk is full, the save is skipped with an error, the previous checkpoint stays, and training continues. If
      the last checkpoint of a run could not be written, the run ends with that error.
    * `--resume` uses the checkpoint that `last_checkpoint` names. If it is damaged, the damage is reported and the
      newest intact checkpoint before it is used.
    * Before rank 0 writes, `gather_for_checkpoint(runner)` of every hook that has it runs on all ranks, so that hooks
      can bring the other ranks' share to rank 0.

    Raises:
        OSError: After training, if the last checkpoint is not on the disk.
        ValueError: Before training, if a run to resume has checkpoints but no intact one, or if another process trains
            in the same folder.
    """

    backend_args: dict[str, Any] | None
    last_ckpt: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is None and self.file_client_args is None and '://' not in str(self.out_dir):
            self.backend_args = dict(backend='atomic')
        self._held: TextIO | None = None
        self._unsaved: str | None = None
        """Why the latest checkpoint is not on the disk."""

    def before_run(self, runner: Runner) -> None:
        if runner.cfg.get('resume') and not runner.cfg.get('load_from'):
            if is_main_process():
                name_a_whole_checkpoint(runner)
            barrier()

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process():
            self._held = occupy(runner.work_dir)
        if is_main_process() and '://' not in str(self.out_dir):
            for path in remove_partial_files(self.out_dir):
                runner.logger.info(f'removed {path}, which an earlier run left half-written')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        log = checkpoint['message_hub']
        histories = {name: history_to_plain(history) for name, history in log['log_scalars'].items()}
        checkpoint['message_hub'] = {**log, 'log_scalars': histories}
        left_out: list[str] = []
        for name in list(checkpoint):
            checkpoint[name] = to_plain(checkpoint[name], name, left_out)
        if left_out:
            runner.logger.warning(
                f'{len(left_out)} entries are not saved: they are neither tensors nor plain data, and loading them '
                f'would run code: {", ".join(left_out)}'
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        histories = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for name, history in histories.items():
            if isinstance(history, dict):
                histories[name] = history_from_plain(history)

    def after_train(self, runner: Runner) -> None:
        if self._held:
            self._held.close()
        if self._unsaved:
            raise OSError(f'the last checkpoint of this run is not on the disk: {self._unsaved}')
        super().after_train(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        before = self.last_ckpt, list(getattr(self, 'keep_ckpt_ids', []))
        outdated = self._keep(runner, step)
        runner.call_hook('gather_for_checkpoint')
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir,
                self.filename_tmpl.format(step),
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                write_atomically(Path(runner.work_dir) / 'last_checkpoint', str(self.last_ckpt).encode())
        except OSError as error:
            self._unsaved = self._say_no_room(runner, self._path(step), error)
            self.last_ckpt = before[0]
            self.keep_ckpt_ids = deque(before[1])
            return
        self._unsaved = None
        if is_main_process():
            for one in outdated:
                self._remove(self._path(one))

    def _keep(self, runner: Runner, step: int) -> list[int]:
        """Add a checkpoint to those that are kept; return the steps of those to remove."""
        if self.max_keep_ckpts <= 0:
            return []
        steps = [one for one in self.keep_ckpt_ids if one != step] + [step]
        self.keep_ckpt_ids = deque(steps[-self.max_keep_ckpts :])
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return steps[: -self.max_keep_ckpts]

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best:
            return
        runner.call_hook('gather_for_checkpoint')
        before, known = self._best_files(), best_so_far(runner)
        self._set_best_files(dict.fromkeys(before))  # mmengine removes a file that it knows of before it writes another
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            self._say_no_room(runner, 'the best checkpoint', error)
            for name in best_so_far(runner):
                del runner.message_hub.runtime_info[name]
            runner.message_hub.runtime_info.update(known)
            self._set_best_files(before)
            return
        after = self._best_files()
        self._set_best_files({metric: path or before[metric] for metric, path in after.items()})
        if is_main_process():
            for metric, path in after.items():
                previous = before[metric]
                if path and previous and previous != path:
                    self._remove(previous)
                    runner.logger.info(f'removed the previous best checkpoint {previous}')

    def _best_files(self) -> dict[str, str | None]:
        """Return the path of the best checkpoint by each metric."""
        if len(self.key_indicators) == 1:
            return {'': self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best_files(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths['']
        else:
            self.best_ckpt_path_dict = dict(paths)

    def _path(self, step: int) -> str:
        return str(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step)))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def _say_no_room(self, runner: Runner, name: str, error: OSError) -> str:
        """Log that a checkpoint could not be written for want of room; raise any other error."""
        if error.errno not in NO_ROOM:
            raise error
        message = f'{name} could not be written ({error.strerror})'
        runner.logger.error(f'{message}: free some space; earlier checkpoints are unchanged, and training continues')
        return message


def best_so_far(runner: Runner) -> dict[str, Any]:
    """Return scores and files of the best checkpoints, which mmengine keeps in the message hub."""
    noted = runner.message_hub.runtime_info
    return {name: value for name, value in noted.items() if name.startswith(('best_score', 'best_ckpt'))}


def name_a_whole_checkpoint(runner: Runner) -> None:
    """Make `last_checkpoint`, where the Runner looks for the file to resume from, name an intact one."""
    folder, last = runner.work_dir, named_last(runner.work_dir)
    if '://' in last:
        return
    whole, damaged = first_whole(checkpoints_to_resume(folder))
    for path, damage in damaged.items():
        runner.logger.warning(f'checkpoint {path} is damaged: {damage}')
    if whole is None and (damaged or last):
        raise ValueError(
            f'no checkpoint in {folder} is intact ({len(damaged)} damaged), so the run cannot be resumed. '
            'To start from the beginning, use another --work-dir or leave --resume out'
        )
    if whole is None:
        runner.logger.warning(f'no checkpoint in {folder} to resume from: the run starts at its beginning')
    elif str(whole) != last:
        runner.logger.warning(f'resuming from {whole}: last_checkpoint named {last or "no file"}')
        write_atomically(Path(folder) / 'last_checkpoint', str(whole).encode())


def occupy(folder: str | Path) -> TextIO:
    """Lock a folder for this process, until the returned file is closed or the process ends.

    It is a POSIX lock: forked processes do not inherit it, and shared file systems honour it on all machines.

    Raises:
        ValueError: If another process holds it.
    """
    file = (Path(folder) / IN_USE).open('a+', encoding='utf-8')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read() or 'another process'
        file.close()
        raise ValueError(
            f'{folder} is in use: {holder} trains there, and two runs would mix their checkpoints. Use another '
            '--work-dir, or end that run first'
        ) from None
    except OSError:
        return file  # a file system without locks
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    return file


def to_plain(value: Any, name: str, left_out: list[str]) -> Any:
    """Convert a value to tensors, numbers, texts, dicts, lists, tuples and sets.

    numpy scalars become numbers; numpy arrays become tensors, or lists if torch lacks the dtype; subclasses of plain
    types become these types; paths become texts. Anything else is dropped from dicts and becomes None in lists.

    Args:
        value: The value.
        name: Name of the value, for `left_out`.
        left_out: Receives 'name (type)' of everything that was dropped.
    """
    plain = _to_plain(value, name, left_out)
    return None if plain is LEFT_OUT else plain


def _to_plain(value: Any, name: str, left_out: list[str]) -> Any:
    if value is None or isinstance(value, (Tensor, torch.dtype, torch.device)):
        return value
    if isinstance(value, np.generic):
        return _to_plain(value.item(), name, left_out)
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(value.copy())
        except TypeError:
            return _to_plain(value.tolist(), name, left_out)
    for kind in SCALARS:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        entries = {key: _to_plain(entry, f'{name}.{key}', left_out) for key, entry in value.items()}
        kept = {to_plain(key, f'a key of {name}', left_out): e for key, e in entries.items() if e is not LEFT_OUT}
        return _ordered_like(value, kept) if isinstance(value, OrderedDict) else kept
    for kind in (list, tuple, set):
        if isinstance(value, kind):
            return kind(to_plain(entry, f'{name}.{number}', left_out) for number, entry in enumerate(value))
    left_out.append(f'{name} ({type(value).__module__}.{type(value).__qualname__})')
    return LEFT_OUT


def _ordered_like(original: OrderedDict, entries: dict) -> OrderedDict:
    """Return an OrderedDict with the attributes of the original: torch keeps module versions of a state dict there."""
    ordered = OrderedDict(entries)
    ordered.__dict__.update(vars(original))
    return ordered


def history_to_plain(history: HistoryBuffer) -> dict[str, Any]:
    """Return the contents of a smoothed log value."""
    values, counts = history.data
    return {'values': values, 'counts': counts, 'max_length': history.max_length}


def history_from_plain(plain: dict[str, Any]) -> HistoryBuffer:
    """Invert `history_to_plain`."""
    values, counts = (np.asarray(torch.as_tensor(plain[name]).cpu()) for name in ('values', 'counts'))
    return HistoryBuffer(values, counts, plain['max_length'])
