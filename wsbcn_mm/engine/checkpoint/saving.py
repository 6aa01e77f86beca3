"""Save checkpoints that are whole, plain and never the last of their kind to be removed."""

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

from .. import scalar_log as _scalar_log  # noqa: F401 - recipes name it
from ..files import NO_ROOM, remove_partial_files, write_atomically
from . import reading as _checkpoint_loading  # noqa: F401 - what is saved here is loaded by that
from .reading import checkpoints_to_resume, first_whole, named_last

NAME = '.in_use'


def occupy(folder: str | Path) -> TextIO:
    """Hold a folder for this process, until the file that is returned is closed or the process ends in any way.

    The lock is POSIX's: processes that are forked do not have it, and shared file systems know of it on all machines.

    Raises:
        ValueError: If another process holds it.
    """
    file = (Path(folder) / NAME).open('a+', encoding='utf-8')
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


SCALARS: tuple[type, ...] = (bool, int, float, complex, str, bytes)


LEFT_OUT = object()


def to_plain(value: Any, name: str, left_out: list[str]) -> Any:
    """The same value in tensors, numbers, texts, dicts, lists, tuples and sets.

    numpy's scalars become numbers, its arrays tensors (lists, where torch has no such dtype), subclasses of plain types
    those types, paths texts. Of anything else dicts lose the entry, and lists have None in its place.

    Args:
        name: What the value is called.
        left_out: Receives 'name (type)' of everything that is not in the result.
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
    """With the attributes of the original: state dicts of torch have their modules' versions there."""
    ordered = OrderedDict(entries)
    ordered.__dict__.update(vars(original))
    return ordered


def history_to_plain(history: HistoryBuffer) -> dict[str, Any]:
    """What a smoothed log value is made of."""
    values, counts = history.data
    return {'values': values, 'counts': counts, 'max_length': history.max_length}


def history_from_plain(plain: dict[str, Any]) -> HistoryBuffer:
    """The inverse of `history_to_plain`."""
    values, counts = (np.asarray(torch.as_tensor(plain[name]).cpu()) for name in ('values', 'counts'))
    return HistoryBuffer(values, counts, plain['max_length'])


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with the same arguments, for runs that may be killed at any moment.

    * A checkpoint takes its name when all of it is on the disk, then `last_checkpoint` names it, and only then is an
      older one removed (mmengine removes first): `max_keep_ckpts` of them and the one being written need room.
    * They have tensors and plain data alone, and load under `torch.load(weights_only=True)`.
    * Where there is no room, the one before stays, an error is logged, and training goes on; if the last one of a run
      could not be written, the run ends with that error.
    * A run that resumes by itself goes on from the checkpoint that `last_checkpoint` names, or the newest one before it
      that is whole, and says which ones are not.
    * Before rank 0 writes, hooks can bring the other ranks' share of it there: `gather_for_checkpoint(runner)` of every
      hook that has it is called on all ranks.

    Raises:
        OSError: After training, if its last checkpoint is not on the disk.
        ValueError: Before training, if a run to resume has checkpoints, but none that is whole, or if another process
            trains in the same folder.
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
                runner.logger.info(f'{path}, left half-written by an earlier run, is removed')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        log = checkpoint['message_hub']
        histories = {name: history_to_plain(history) for name, history in log['log_scalars'].items()}
        checkpoint['message_hub'] = {**log, 'log_scalars': histories}
        left_out: list[str] = []
        for name in list(checkpoint):
            checkpoint[name] = to_plain(checkpoint[name], name, left_out)
        if left_out:
            runner.logger.warning(
                f'{len(left_out)} entries are not saved, as they are neither tensors nor plain data and could not be '
                f'loaded without running code: {", ".join(left_out)}'
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
        """Count a checkpoint among those that are kept; gives the steps of those that no longer are."""
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
                    runner.logger.info(f'The previous best checkpoint {previous} is removed')

    def _best_files(self) -> dict[str, str | None]:
        """Path of the best checkpoint by each metric."""
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
        """Log that a checkpoint could not be written; an error of another kind is raised."""
        if error.errno not in NO_ROOM:
            raise error
        message = f'{name} could not be written ({error.strerror})'
        runner.logger.error(f'{message}; what was saved before is as it was, and training goes on: make room')
        return message


def best_so_far(runner: Runner) -> dict[str, Any]:
    """Scores and files of the best checkpoints, as mmengine notes them for the next run."""
    noted = runner.message_hub.runtime_info
    return {name: value for name, value in noted.items() if name.startswith(('best_score', 'best_ckpt'))}


def name_a_whole_checkpoint(runner: Runner) -> None:
    """Have `last_checkpoint`, where the Runner looks for what to resume from, name a file that is whole."""
    folder, last = runner.work_dir, named_last(runner.work_dir)
    if '://' in last:
        return
    whole, damaged = first_whole(checkpoints_to_resume(folder))
    for path, damage in damaged.items():
        runner.logger.warning(f'checkpoint {path} is damaged: {damage}')
    if whole is None and (damaged or last):
        raise ValueError(
            f'no checkpoint in {folder} is whole ({len(damaged)} damaged): there is nothing to resume from. '
            'To start anew, use another --work-dir or leave --resume out'
        )
    if whole is None:
        runner.logger.warning(f'there is no checkpoint in {folder} to resume from: the run starts at its beginning')
    elif str(whole) != last:
        runner.logger.warning(f'going on from {whole}: {last or "no checkpoint"} was named last')
        write_atomically(Path(folder) / 'last_checkpoint', str(whole).encode())
