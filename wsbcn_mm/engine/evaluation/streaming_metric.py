"""Metrics that sum integers over samples, and count each sample exactly once."""

import logging
from collections import Counter
from collections.abc import Hashable
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger, print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

NO_PADDING = (
    "set sampler=dict(type='DefaultSampler', shuffle=False, round_up=False) in val_dataloader and test_dataloader"
)
NAMED = 3
"""Number of samples that an error names."""


class StreamingMetric(BaseMetric):
    """A metric that keeps integer totals on the device of the predictions, and one id per sample.

    A subclass counts in `process`, through `add`, `scored` and `not_readable`. It implements `compute_metrics`, from
    totals to results, and `report`. Only the ids grow with the dataset. `process` does not communicate; `evaluate` adds
    up the totals of all ranks. Sums of integers do not depend on their order, so the result is bit-equal for any number
    of ranks and any batch.

    A sample that was counted twice cannot be removed from a sum. Samplers must therefore not pad: set `round_up=False`
    for mmengine's `DefaultSampler`.

    Args:
        allow_missing: Warn, instead of raising an error, if samples of the dataset were not scored.
        out_dir: Folder for the files of `report`. The default is `evaluation` beside the log of the run; without a log
            no files are written. During training, each evaluation writes to a subfolder `iter_<iteration>`.
        collect_device: Unused, kept for mmengine's signature.
        prefix: Prefix of the names of the results.

    Raises:
        ValueError: In `evaluate`, if a sample was scored twice, if a sample was not scored, or if none was.
    """

    unit = 'samples'

    def __init__(
        self,
        *,
        allow_missing: bool = False,
        out_dir: str | Path | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.allow_missing = allow_missing
        self.out_dir = out_dir
        self.totals: dict[str, Tensor] = {}
        self.unreadable: list[Hashable] = []

    def add(self, name: str, counts: Tensor) -> None:
        """Add `counts` to the total `name`. `counts` is int64 and has the same shape in each call."""
        if name in self.totals:
            self.totals[name] += counts
        else:
            self.totals[name] = counts.clone()

    def scored(self, sample_id: Hashable) -> None:
        """Record that the counts of a sample have been added."""
        self.results.append(sample_id)

    def not_readable(self, sample_id: Hashable) -> None:
        """Record a sample of the dataset that could not be read and is not scored."""
        self.unreadable.append(sample_id)

    def compute_metrics(self, totals: dict[str, Tensor]) -> dict[str, float]:
        """Return the results from the totals over all ranks, which are on the CPU."""
        raise NotImplementedError

    def report(self, totals: dict[str, Tensor], metrics: dict[str, float], folder: Path | None) -> None:
        """Log and write details beyond the results. Runs only in the main process."""

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the counts of all ranks, check that each sample counted once, and compute the results.

        Args:
            size: Number of samples in the dataset.
        """
        totals_of_this_rank = {name: total.cpu() for name, total in self.totals.items()}
        gathered = all_gather_object((list(self.results), list(self.unreadable), totals_of_this_rank))
        self.results.clear()
        self.unreadable.clear()
        self.totals.clear()
        scored = [sample_id for ids, _, _ in gathered for sample_id in ids]
        unreadable = [sample_id for _, ids, _ in gathered for sample_id in ids]
        coverage, complete = self._coverage(scored, unreadable, size)
        totals: dict[str, Tensor] = {}
        for _, _, of_rank in gathered:
            for name, total in of_rank.items():
                totals[name] = totals[name] + total if name in totals else total
        metrics = self.compute_metrics(totals)
        if is_main_process():
            print_log(coverage, logger='current', level=logging.INFO if complete else logging.WARNING)
            self._report(totals, metrics)
        return {f'{self.prefix}/{name}' if self.prefix else name: value for name, value in metrics.items()}

    def _coverage(self, scored: list, unreadable: list, size: int) -> tuple[str, bool]:
        """Return the numbers of scored and missing samples in one line, and whether none is missing.

        Raises:
            ValueError: As in `evaluate`.
        """
        times = Counter([*scored, *unreadable])
        repeated = [sample_id for sample_id, count in times.items() if count > 1]
        if repeated:
            raise ValueError(
                f'{len(repeated)} of {size} {self.unit} were scored more than once (the first: {_named(repeated)}). '
                f'The sampler pads: {NO_PADDING}'
            )
        if not scored:
            reason = f'all {len(unreadable)} are unreadable' if unreadable else 'the dataset or the loader is empty'
            raise ValueError(f'none of {size} {self.unit} was scored: {reason}')
        missing = size - len(times)
        if missing < 0:
            raise ValueError(f'{len(times)} {self.unit} were evaluated, but the dataset has {size}')
        if missing and not self.allow_missing:
            named = [index for index in range(size) if index not in times] if isinstance(scored[0], int) else []
            raise ValueError(
                f'{missing} of {size} {self.unit} were not scored{f" (the first: {_named(named)})" if named else ""}. '
                'Evaluate the whole dataset, or set allow_missing=True in the evaluator'
            )
        annotated = (self.dataset_meta or {}).get('num_annotated', size)
        left_out = {'left out by the dataset': annotated - size, 'unreadable': len(unreadable), 'not scored': missing}
        reasons = ', '.join(f'{count} {reason}' for reason, count in left_out.items() if count > 0)
        text = f'{len(scored)} of {annotated} {self.unit} scored, each once'
        return (f'{text}; {reasons}: the result is over those scored', False) if reasons else (text, True)

    def _report(self, totals: dict[str, Tensor], metrics: dict[str, float]) -> None:
        folder = evaluation_folder(self.out_dir)
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self.report(totals, metrics, folder)
        except OSError as error:
            print_log(f'the files of the evaluation are incomplete: {error}', 'current', logging.WARNING)
        else:
            if folder is not None:
                print_log(f'per-class results and confusion matrix: {folder}', 'current')


def evaluation_folder(out_dir: str | Path | None) -> Path | None:
    """Return the folder for the files of an evaluation; None if `out_dir` is None and the run has no log."""
    if out_dir is None:
        log = MMLogger.get_current_instance().log_file
        if log is None:
            return None
        out_dir = Path(log).parent / 'evaluation'
    iteration = MessageHub.get_current_instance().get_info('iter')
    # mmengine counts the running iteration from 0.
    return Path(out_dir) if iteration is None else Path(out_dir) / f'iter_{iteration + 1}'


def mean_of_present(values: Tensor) -> tuple[float, int]:
    """Return the mean in percent over the values that are not nan, and their number."""
    present = values[~values.isnan()]
    return 100 * present.mean().item() if len(present) else torch.nan, len(present)


def _named(ids: list) -> str:
    return ', '.join(map(str, ids[:NAMED])) + (', ...' if len(ids) > NAMED else '')


@HOOKS.register_module()
class EvaluationPaddingHook(Hook):
    """Reject a sampler that pads the evaluation of a `StreamingMetric`, which would fail only at its end.

    Raises:
        ValueError: Before training and before an evaluation, for a `DefaultSampler` with `round_up`, if the number of
            processes does not divide the number of samples.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is not None:
            refuse_padding(runner.val_loop)

    def before_val(self, runner: Runner) -> None:
        refuse_padding(runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        refuse_padding(runner.test_loop)


def refuse_padding(loop) -> None:
    """Raise ValueError if the sampler of `loop` would pad and one of its metrics is a `StreamingMetric`."""
    if not any(isinstance(metric, StreamingMetric) for metric in loop.evaluator.metrics):
        return
    processes, samples = get_world_size(), len(loop.dataloader.dataset)
    copies = -samples % processes
    if copies and getattr(loop.dataloader.sampler, 'round_up', False):
        raise ValueError(
            f'{processes} processes cannot share {samples} samples evenly: the sampler of {type(loop).__name__} would '
            f'pad, and {copies} samples would be scored twice; {NO_PADDING}'
        )
