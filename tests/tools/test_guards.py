"""Runs of tools/train.py that a guard watches over."""

import pytest
import torch
from tiny_runs import logs, options, recipe, run_tool


def checkpoint(path):
    return torch.load(path, map_location='cpu', weights_only=True)


@pytest.fixture
def _torch_as_it_was():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures('_torch_as_it_was')
def test_deterministic_runs_are_the_same_to_the_last_bit(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    ask = options('segmentation', tiny_data, 4, 'randomness.deterministic=True', 'default_hooks.checkpoint.interval=4')
    for name in ('first', 'second'):
        run_tool('train.py', recipe('segmentation'), '--work-dir', tmp_path / name, *ask)
    (log,) = logs(tmp_path / 'first')
    assert 'deterministic: bilinear interpolation goes backward by matrix products' in log
    first, second = (checkpoint(tmp_path / name / 'iter_4.pth') for name in ('first', 'second'))
    assert first['state_dict'].keys() == second['state_dict'].keys()
    assert all(torch.equal(tensor, second['state_dict'][name]) for name, tensor in first['state_dict'].items())
    momenta = [state['optimizer']['state'] for state in (first, second)]
    assert len(momenta[0]) > 20
    for key, state in momenta[0].items():
        assert torch.equal(state['momentum_buffer'], momenta[1][key]['momentum_buffer'])
