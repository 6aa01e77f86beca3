"""Weights are written with their metadata, atomically, and never over an existing file."""

import re

import pytest
import torch

from wsbcn_mm.engine.checkpoint.reading import read_checkpoint
from wsbcn_mm.engine.checkpoint.writing import write_checkpoint

STATE = {'conv1.weight': torch.arange(24.0).view(4, 2, 3, 1).transpose(0, 1), 'bn1.bias': torch.ones(4)}
META = {'fingerprint': {'conv1': {'conv': 'WS', 'variant': 'jhu', 'eps': 1e-5}}, 'source': 'here'}


@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors', 'folder/weights.pth'])
def test_written_checkpoints_are_read(name, tmp_path):
    write_checkpoint(tmp_path / name, STATE, META)
    read = read_checkpoint(tmp_path / name)
    assert read.state.keys() == STATE.keys()
    assert all(torch.equal(read.state[key], tensor) for key, tensor in STATE.items())
    assert read.meta == META
    assert read.ignored == []


@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors'])
def test_tensors_that_share_memory_are_written(name, tmp_path):
    shared = torch.arange(6.0)
    state = {'tied': shared, 'to': shared, 'part': shared[2:4]}
    write_checkpoint(tmp_path / name, state, {})
    read = read_checkpoint(tmp_path / name).state
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors'])
def test_nothing_is_left_of_a_file_that_could_not_be_written(name, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match='No space left on device'):
        write_checkpoint(tmp_path / name, STATE, META)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'dear')
    message = f'{path} already exists and is not overwritten: remove it or choose another name'
    with pytest.raises(FileExistsError, match=f'^{re.escape(message)}$'):
        write_checkpoint(path, STATE, META)
    assert path.read_bytes() == b'dear'
