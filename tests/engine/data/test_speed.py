"""Timing leaves pipelines unchanged, and workers run one thread each."""

import random
import time

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

from wsbcn_mm.engine.data.speed import pipelines_of, time_samples, usable_cores
from wsbcn_mm.engine.resume.order import SeededSamples


class LoadNumber:
    def __call__(self, results):
        time.sleep(0.004)
        return results | dict(img=np.random.rand(4), clips=torch.zeros(1, 2, 3, 30, 40))


class Double:
    def __call__(self, results):
        return results | dict(img=2 * results['img'])


class Pack:
    def __call__(self, results):
        return dict(inputs=torch.rand(3) + random.random(), data_samples=results['img'])


class Threads:
    """Report the threads that a worker may use."""

    def __call__(self, results):
        threads = [torch.get_num_threads(), cv2.getNumThreads(), torch.utils.data.get_worker_info() is not None]
        return dict(inputs=torch.tensor(threads), data_samples=results['sample_idx'])


class Numbers(BaseDataset):
    def __init__(self, *pipeline):
        super().__init__(pipeline=list(pipeline), serialize_data=False)

    def load_data_list(self):
        return [dict(number=number) for number in range(10)]


def test_stages_of_joined_and_wrapped_datasets() -> None:
    first, second = Numbers(LoadNumber(), Double(), Pack()), Numbers(LoadNumber(), Double(), Pack())
    dataset = SeededSamples(ConcatDataset([first, second]))
    assert pipelines_of(dataset) == [first.pipeline, second.pipeline]
    before = [list(pipeline.transforms) for pipeline in pipelines_of(dataset)]
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), torch.get_num_threads()

    sample = time_samples(dataset, 12)

    assert [stage.name for stage in sample.stages] == ['LoadNumber', 'Double', 'Pack']
    assert sample.samples == 12
    assert 0.004 < sample.stages[0].seconds < sample.seconds
    assert sum(stage.seconds for stage in sample.stages) <= sample.seconds
    assert sample.decoding == sample.stages[0].seconds / sample.seconds
    assert sample.frame_size == (30, 40)
    assert [pipeline.transforms for pipeline in pipelines_of(dataset)] == before
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_num_threads()) == numbers[1:]


def test_timing_ends_in_time_and_rejects_what_it_cannot_time() -> None:
    assert time_samples(Numbers(LoadNumber(), Pack()), 10_000, at_most=0.02).samples < 20
    with pytest.raises(ValueError, match=r'^samples=0: at least 1 is needed$'):
        time_samples(Numbers(Pack()), 0)
    with pytest.raises(ValueError, match=r'^list has no pipeline: only datasets with a pipeline can be timed$'):
        time_samples([1, 2, 3], 2)


def test_cores_are_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    cores = usable_cores()
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert usable_cores() == max(cores // 2, 1)


def test_workers_run_one_thread_each() -> None:
    """Workers are set up as by the Runner of a recipe; the training process has more threads."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(2)
        set_multi_processing('fork', opencv_num_threads=0)
        loader = Runner.build_dataloader(
            dict(
                batch_size=1,
                num_workers=2,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=Numbers(Threads()),
            ),
            seed=0,
        )
        found = {tuple(inputs.tolist()) for batch in loader for inputs in batch['inputs']}
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
    assert found <= {(1, threads, 1) for threads in (0, 1)}, '(torch, OpenCV, in a worker)'
    assert found
