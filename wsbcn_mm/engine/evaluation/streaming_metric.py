"""Metrics that are sums of integers over samples, each of which counts exactly once."""

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
"""How many samples an error names."""


class StreamingMetric(BaseMetric):
    """A metric that keeps integer totals, on the device of the predictions, and one id per sample.

    A subclass counts in `process` through `add`, `scored` and `not_readable`, and implements `compute_metrics`, from
    totals to results, and `report`. Nothing else is kept, so the memory does not grow with the set but for the ids.
    `process` talks to no other rank; `evaluate` adds up the totals of all ranks, and since sums of integers have no
    order, the result is the same to the last bit whatever the number of ranks and the batch.

    A sum cannot forget a sample that was counted twice. Samplers must therefore not pad: `round_up=False` for
    mmengine's `DefaultSampler`.

    Args:
        allow_missing: Go on with a warning if samples of the dataset were not scored.
        out_dir: Folder for the files of `report`; if None, `evaluation` beside the log of the run, and without such a
            log no files. While training each evaluation has a folder `iter_<iteration>` in it.
        collect_device: Unused, kept for mmengine's signature.
        prefix: Before the names of the results.

    Raises:
        ValueError: In `evaluate`, if a sample was scored twice, or was not scored, or none was.
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
        """Add to the total of this name; `counts` is int64 and has the same shape at each call."""
        if name in self.totals:
            self.totals[name] += counts
        else:
            self.totals[name] = counts.clone()

    def scored(self, sample_id: Hashable) -> None:
        """Note that a sample's counts have been added."""
        self.results.append(sample_id)

    def not_readable(self, sample_id: Hashable) -> None:
        """Note a sample of the dataset that could not be read and is not scored."""
        self.unreadable.append(sample_id)

    def compute_metrics(self, totals: dict[str, Tensor]) -> dict[str, float]:
        """Results of the totals over all ranks, which are on the CPU."""
        raise NotImplementedError

    def report(self, totals: dict[str, Tensor], metrics: dict[str, float], folder: Path | None) -> None:
        """Log and write what the results do not say; runs in the main process alone."""

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the counts of all ranks, check that each sample counted once, and compute.

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
        """What was scored, in one line, and whether it is all there is.

        Raises:
            ValueError: As `evaluate`.
        """
        times = Counter([*scored, *unreadable])
        repeated = [sample_id for sample_id, count in times.items() if count > 1]
        if repeated:
            raise ValueError(
                f'{len(repeated)} of {size} {self.unit} were scored more than once (the first: {_named(repeated)}). '
                f'Samplers that pad do this: {NO_PADDING}'
            )
        if not scored:
            reason = f'all {len(unreadable)} are unreadable' if unreadable else 'the dataset or the loader is empty'
            raise ValueError(f'none of {size} {self.unit} was scored: {reason}')
        missing = size - len(times)
        if missing < 0:
            raise ValueError(f'{len(times)} {self.unit} were evaluated, of a dataset of {size}')
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
            print_log(f'files of the evaluation are not complete: {error}', 'current', logging.WARNING)
        else:
            if folder is not None:
                print_log(f'per-class results and confusion matrix: {folder}', 'current')


def evaluation_folder(out_dir: str | Path | None) -> Path | None:
    """Where the files of an evaluation go; None without a folder and without a run that has a log."""
    if out_dir is None:
        log = MMLogger.get_current_instance().log_file
        if log is None:
            return None
        out_dir = Path(log).parent / 'evaluation'
    iteration = MessageHub.get_current_instance().get_info('iter')
    # mmengine counts the iteration that is running, from 0.
    return Path(out_dir) if iteration is None else Path(out_dir) / f'iter_{iteration + 1}'


def mean_of_present(values: Tensor) -> tuple[float, int]:
    """Mean in percent over the classes that have a value (are not nan), and how many they are."""
    present = values[~values.isnan()]
    return 100 * present.mean().item() if len(present) else torch.nan, len(present)


def _named(ids: list) -> str:
    return ', '.join(map(str, ids[:NAMED])) + (', ...' if len(ids) > NAMED else '')


@HOOKS.register_module()
class EvaluationPaddingHook(Hook):
    """Refuse a sampler that pads the evaluation of a `StreamingMetric`, which would find out only at its end.

    Raises:
        ValueError: Before training and before an evaluation, for a `DefaultSampler` with `round_up` whose dataset the
            number of processes does not divide.
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
    """Raise ValueError if this loop's sampler would pad, and its metric counts each sample."""
    if not any(isinstance(metric, StreamingMetric) for metric in loop.evaluator.metrics):
        return
    processes, samples = get_world_size(), len(loop.dataloader.dataset)
    copies = -samples % processes
    if copies and getattr(loop.dataloader.sampler, 'round_up', False):
        raise ValueError(
            f'{processes} processes cannot share {samples} samples evenly, and the sampler of {type(loop).__name__} '
            f'would have {copies} of them scored twice: {NO_PADDING}'
        )
