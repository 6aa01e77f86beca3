"""Runs of tools/train.py with guards."""

import re

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests.tools.tiny_runs import logs, options, recipe, run_tool
from wsbcn_mm.video.models.head import ClipHead


def checkpoint(path):
    return torch.load(path, map_location='cpu', weights_only=True)


@pytest.fixture
def _torch_as_it_was():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize('task', ['segmentation', 'video'])
@pytest.mark.usefixtures('_torch_as_it_was')
def test_deterministic_runs_are_the_same_to_the_last_bit(task, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    ask = options(task, tiny_data, 4, 'randomness.deterministic=True', 'default_hooks.checkpoint.interval=4')
    for name in ('first', 'second'):
        run_tool('train.py', recipe(task), '--work-dir', tmp_path / name, *ask)
    (log,) = logs(tmp_path / 'first')
    assert 'deterministic: bilinear interpolation goes backward by matrix products' in log
    first, second = (checkpoint(tmp_path / name / 'iter_4.pth') for name in ('first', 'second'))
    assert first['state_dict'].keys() == second['state_dict'].keys()
    assert all(torch.equal(tensor, second['state_dict'][name]) for name, tensor in first['state_dict'].items())
    momenta = [state['optimizer']['state'] for state in (first, second)]
    assert len(momenta[0]) > 20
    for key, state in momenta[0].items():
        assert torch.equal(state['momentum_buffer'], momenta[1][key]['momentum_buffer'])


def test_a_run_that_diverges_stops_and_names_iteration_clip_and_module(tiny_data, tmp_path):
    """With an extreme learning rate the second loss is nan."""
    ask = options('video', tiny_data, 20, 'optim_wrapper.optimizer.lr=1e30', 'default_hooks.checkpoint.interval=20')
    with pytest.raises(RuntimeError) as error:
        run_tool('train.py', recipe('video', 'gn'), '--work-dir', tmp_path, *ask)
    (log,) = logs(tmp_path)
    message = str(error.value)
    assert message in log
    assert type(error.value).__name__ == 'NonFiniteError'
    assert re.match(r'iteration \d+: loss_cls is nan\nsamples: \S+/videos/\d+\.mp4 \(sample \d+\)\n', message)
    assert re.search(r'\nthe first module with a non-finite output: (backbone|head)\.\S+, ', message)
    assert message.endswith('There is no checkpoint in its work_dir yet')
    assert not list(tmp_path.glob('*.pth'))


def test_a_run_out_of_memory_says_where_and_names_three_ways_in_order(tiny_data, tmp_path, monkeypatch):
    original = ClipHead.forward

    def forward(self, features):
        if isinstance(features, FakeTensor):  # the memory plan, which allocates nothing
            return original(self, features)
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')

    monkeypatch.setattr(ClipHead, 'forward', forward)
    with pytest.raises(torch.OutOfMemoryError) as error:
        run_tool('train.py', recipe('video'), '--work-dir', tmp_path, *options('video', tiny_data, 2))
    (log,) = logs(tmp_path)
    assert 'out of memory in training, forward pass of head\n' in log
    lines = str(error.value).splitlines()
    assert lines[0] == 'CUDA out of memory. Tried to allocate 2.00 GiB'
    assert lines[2] == 'Out of memory in training, forward pass of head.'
    assert [re.fullmatch(r'  \d\. (.*): \d+ MiB', line)[1] for line in lines[5:8]] == [
        '--amp bf16 --cfg-options activation_memory=save_conv',
        '--amp bf16 --cfg-options activation_memory=full_checkpoint',
        '--cfg-options activation_memory=save_conv',
    ]
    assert lines[8].startswith('List all settings: python tools/plan_memory.py ')


def test_a_test_out_of_memory_says_where_and_what_needs_less(tiny_data, tmp_path, monkeypatch):
    ask = options('video', tiny_data, 2, 'model.max_test_views=2')
    run_tool('train.py', recipe('video'), '--work-dir', tmp_path, *ask)

    def forward(self, features):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')

    monkeypatch.setattr(ClipHead, 'forward', forward)
    with pytest.raises(torch.OutOfMemoryError) as error:
        run_tool('test.py', recipe('video'), tmp_path / 'iter_2.pth', '--work-dir', tmp_path / 'test', *ask)
    assert str(error.value).splitlines()[2:] == [
        'Out of memory in the test, forward pass of head.',
        'To reduce the memory of an evaluation, try in this order:',
        '  1. --cfg-options model.max_test_views=1: one view at a time',
    ]
