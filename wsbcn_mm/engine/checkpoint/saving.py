"""Write checkpoints atomically, as plain data, and never delete the last good one."""

from collections import deque
from pathlib import Path
from typing import Any, TextIO

from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .. import scalar_log as _scalar_log  # noqa: F401 - recipes name it
from ..files import NO_ROOM, remove_partial_files, write_atomically
from . import loading as _loading  # noqa: F401 - loads what is saved here
from .folder_lock import occupy
from .plain_state import history_from_plain, history_to_plain, to_plain
from .selection import checkpoints_to_resume, first_whole, named_last


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """Replace mmengine's CheckpointHook, with the same arguments, for runs that may be killed at any moment.

    * Checkpoints are written atomically. A checkpoint gets its name when all of it is on the disk. Then
      `last_checkpoint` is updated, and only then is an older checkpoint removed (mmengine removes first). The disk
      needs room for `max_keep_ckpts` checkpoints and the one being written.
    * Checkpoints contain only tensors and plain data, and load under `torch.load(weights_only=True)`.
    * If the disk is full, the previous checkpoint stays, the hook logs an error, and training continues. If the last
      checkpoint of a run could not be written, the run ends with that error.
    * A resumed run without `load_from` uses the checkpoint that `last_checkpoint` names, or the latest intact one
      before it. The log reports damaged ones.
    * Before rank 0 writes, the hook calls `gather_for_checkpoint(runner)` of every hook that has it, on all ranks.
      Hooks can gather the state of the other ranks there.

    Raises:
        OSError: After training, if its last checkpoint is not on the disk.
        ValueError: Before training, if all checkpoints of a run to resume are damaged, or if another process trains in
            the same folder.
    """

    backend_args: dict[str, Any] | None
    last_ckpt: str | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is None and self.file_client_args is None and '://' not in str(self.out_dir):
            self.backend_args = dict(backend='atomic')
        self._held: TextIO | None = None
        self._unsaved: str | None = None
        """Reason why the latest checkpoint is not on the disk; None if it is."""

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
                f'{len(left_out)} entries are not saved, because they are neither tensors nor plain data, and loading '
                f'them would run code: {", ".join(left_out)}'
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
        """Add a checkpoint to those that are kept. Return the steps of those to remove."""
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
        self._set_best_files(dict.fromkeys(before))  # mmengine removes the known best file before it writes the new one
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
        """Return the path of the best checkpoint for each metric."""
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
        """Log that a checkpoint did not fit on the disk, and return the message. Raise errors of other kinds."""
        if error.errno not in NO_ROOM:
            raise error
        message = f'{name} could not be written ({error.strerror})'
        runner.logger.error(f'{message}: free disk space. Earlier checkpoints are intact, and training continues')
        return message


def best_so_far(runner: Runner) -> dict[str, Any]:
    """Return the scores and files of the best checkpoints, as mmengine stores them for the next run."""
    noted = runner.message_hub.runtime_info
    return {name: value for name, value in noted.items() if name.startswith(('best_score', 'best_ckpt'))}


def name_a_whole_checkpoint(runner: Runner) -> None:
    """Make `last_checkpoint`, from which the Runner resumes, name an intact file."""
    folder, last = runner.work_dir, named_last(runner.work_dir)
    if '://' in last:
        return
    whole, damaged = first_whole(checkpoints_to_resume(folder))
    for path, damage in damaged.items():
        runner.logger.warning(f'checkpoint {path} is damaged: {damage}')
    if whole is None and (damaged or last):
        raise ValueError(
            f'no checkpoint in {folder} is intact ({len(damaged)} damaged), so the run cannot resume. To start from '
            'the beginning, use another --work-dir or omit --resume'
        )
    if whole is None:
        runner.logger.warning(f'{folder} has no checkpoint to resume from: the run starts from the beginning')
    elif str(whole) != last:
        runner.logger.warning(f'resuming from {whole} instead of the last checkpoint ({last or "not named"})')
        write_atomically(Path(folder) / 'last_checkpoint', str(whole).encode())
