"""Measure how fast training samples load: each transform in one thread, and the workers of a loader."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch.utils.data import DataLoader

from ..resume.order import seed_samples, seeded

DECODING = ('Load', 'Decode')
"""Prefixes of the names of transforms that read and decode files."""


class Stage(NamedTuple):
    """One transform of a pipeline.

    Attributes:
        name: Its type.
        seconds: Mean time per sample.
    """

    name: str
    seconds: float

    @property
    def decodes(self) -> bool:
        """Whether the transform reads and decodes files; the others augment."""
        return self.name.startswith(DECODING)


class SampleTime(NamedTuple):
    """Time to load one sample in one thread.

    Attributes:
        stages: The transforms, in the order of the pipeline.
        seconds: Mean time per sample, including what runs between the stages.
        samples: Number of timed samples.
        frame_size: (height, width) of the first video frames that were decoded; None for images.
    """

    stages: tuple[Stage, ...]
    seconds: float
    samples: int
    frame_size: tuple[int, int] | None = None

    @property
    def decoding(self) -> float:
        """Fraction of the time spent on decoding."""
        return sum(stage.seconds for stage in self.stages if stage.decodes) / self.seconds


def time_samples(dataset: Any, samples: int, *, at_most: float = float('inf')) -> SampleTime:
    """Load samples of a dataset in this process, in one thread, and time every transform of its pipelines.

    The random generators are restored afterwards.

    Args:
        dataset: A dataset that has mmengine pipelines, or wraps datasets that have them.
        samples: Number of samples to time, drawn at random. One more is loaded first, as a warm-up.
        at_most: Seconds after which no further sample starts.

    Raises:
        ValueError: If `samples` is below 1, or the dataset has no pipeline.
    """
    if samples < 1:
        raise ValueError(f'samples={samples}: at least 1 is needed')
    indices = np.random.default_rng(0).integers(len(dataset), size=samples + 1).tolist()
    with seeded(0), _one_thread():
        dataset[indices[0]]
        with _timed_pipelines(dataset) as clock:
            start = time.perf_counter()
            timed = 0
            for index in indices[1:]:
                dataset[index]
                timed += 1
                if time.perf_counter() - start > at_most:
                    break
            seconds = (time.perf_counter() - start) / timed
    stages = tuple(Stage(name, total / timed) for (_, name), total in sorted(clock.seconds.items()))
    return SampleTime(stages, seconds, timed, clock.frame_size)


def time_recipe(cfg: Config, workers: int, samples: int) -> tuple[SampleTime, float]:
    """Time a recipe's training data.

    Returns:
        The time of a sample in this process, and the samples per second of a loader with this many workers when nothing
        else runs.
    """
    cfg = deepcopy(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    seed_samples(cfg)
    cfg.train_dataloader.update(num_workers=workers, persistent_workers=False)
    set_multi_processing(**cfg.get('env_cfg', {}).get('mp_cfg', {}))
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    sample = time_samples(loader.dataset, samples)
    return sample, loader_speed(loader, samples)


def loader_speed(loader: DataLoader, samples: int) -> float:
    """Return the samples per second of a loader, without the batches that it prefetches while its workers start."""
    batches = iter(loader)
    ahead = loader.num_workers * (loader.prefetch_factor or 0)
    for _ in range(ahead + 1):
        next(batches)
    start, made = time.perf_counter(), 0
    while made < samples:
        made += len(next(batches)['data_samples'])
    return made / (time.perf_counter() - start)


def usable_cores() -> int:
    """Return the CPU cores of this process: those it may use, divided by the torchrun processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1)), 1)


class _Clock:
    """Seconds of each transform, by position and name."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[int, str], float] = {}
        self.frame_size: tuple[int, int] | None = None

    def timed(self, position: int, transform: Callable[[dict], Any]) -> Callable[[dict], Any]:
        key = (position, type(transform).__name__)
        self.seconds.setdefault(key, 0.0)

        def call(results: dict) -> Any:
            start = time.perf_counter()
            out = transform(results)
            self.seconds[key] += time.perf_counter() - start
            if self.frame_size is None and isinstance(out, dict) and 'clips' in out:
                self.frame_size = tuple(out['clips'].shape[-2:])
            return out

        return call


@contextmanager
def _timed_pipelines(dataset: Any) -> Iterator[_Clock]:
    """Time the transforms of all pipelines in a dataset. Those with the same position and name are added up."""
    clock, before = _Clock(), []
    for pipeline in pipelines_of(dataset):
        before.append((pipeline, pipeline.transforms))
        pipeline.transforms = [clock.timed(i, transform) for i, transform in enumerate(pipeline.transforms)]
    if not before:
        raise ValueError(f'{type(dataset).__name__} has no pipeline: only datasets with a pipeline can be timed')
    try:
        yield clock
    finally:
        for pipeline, transforms in before:
            pipeline.transforms = transforms


def pipelines_of(dataset: Any) -> list[Any]:
    """Return the pipelines of a dataset and of the datasets that it wraps or joins, each once."""
    wrapped = [*getattr(dataset, 'datasets', ()), *([dataset.dataset] if hasattr(dataset, 'dataset') else [])]
    if wrapped:
        found = [pipeline for one in wrapped for pipeline in pipelines_of(one)]
        return list({id(pipeline): pipeline for pipeline in found}.values())
    return [dataset.pipeline] if hasattr(dataset, 'pipeline') else []


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch and OpenCV to one thread, as in a loader's worker."""
    cv2 = sys.modules.get('cv2')
    before = torch.get_num_threads(), cv2.getNumThreads() if cv2 else 0
    torch.set_num_threads(1)
    if cv2:
        cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        if cv2:
            cv2.setNumThreads(before[1])
