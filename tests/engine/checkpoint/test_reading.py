"""Checkpoints are read without running code in them; damage is reported."""

import re
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torch import nn

from wsbcn_mm.engine.checkpoint.damage import DamagedCheckpointError
from wsbcn_mm.engine.checkpoint.reading import read_checkpoint
from wsbcn_mm.engine.checkpoint.writing import write_checkpoint

STATE = {'conv1.weight': torch.arange(24.0).view(4, 2, 3, 1).transpose(0, 1), 'bn1.bias': torch.ones(4)}
META = {'fingerprint': {'conv1': {'conv': 'WS', 'variant': 'jhu', 'eps': 1e-5}}, 'source': 'here'}


class Code:
    """A class that a pickle needs to be read."""


@pytest.mark.parametrize('container', ['state_dict', 'model'])
def test_weights_are_found_beside_an_optimizer(container, tmp_path):
    torch.save({'epoch': 3, container: STATE, 'optimizer': {'state': {}}}, tmp_path / 'model.pth.tar')
    read = read_checkpoint(tmp_path / 'model.pth.tar')
    assert read.state.keys() == STATE.keys()
    assert read.ignored == ['epoch', 'optimizer']
    assert read.meta == {}


def test_a_bare_state_dict_and_arrays_are_read(tmp_path):
    torch.save(STATE | {'version': 2}, tmp_path / 'bare.pth')
    assert read_checkpoint(tmp_path / 'bare.pth')[1:] == ({}, ['version'])
    np.savez(tmp_path / 'arrays.npz', **{'resnet/group_norm/gamma': np.ones(3, np.float32)})
    assert read_checkpoint(tmp_path / 'arrays.npz').state['resnet/group_norm/gamma'].dtype == torch.float32


def test_a_pickle_that_needs_code_is_rejected_and_read_on_trust(tmp_path):
    path = tmp_path / 'code.pth'
    torch.save({'state_dict': STATE, 'args': Code()}, path)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - its text is compared below
        read_checkpoint(path)
    message = str(refused.value)
    assert message.startswith(f'{path} needs code to be read, because it contains more than tensors and plain data (')
    assert f'{Code.__module__}.Code' in message
    assert message.endswith(
        'Such a file can run any code: if you trust it, extract the weights with tools/convert_checkpoint.py --trust'
    )
    assert read_checkpoint(path, trust=True).ignored == ['args']


@pytest.mark.filterwarnings('ignore:.*TorchScript')
@pytest.mark.parametrize(
    'save',
    [torch.save, lambda module, path: torch.save({'model': module}, path), lambda m, f: torch.jit.script(m).save(f)],
    ids=['module', 'in a dict', 'TorchScript'],
)
def test_the_weights_of_a_whole_module_are_read_on_trust(save, tmp_path):
    module, path = nn.Linear(2, 3), tmp_path / 'module.pth'
    save(module, path)
    with pytest.raises(ValueError, match=rf'^{path} needs code to be read'):
        read_checkpoint(path)
    read = read_checkpoint(path, trust=True)
    assert all(torch.equal(read.state[key], tensor) for key, tensor in module.state_dict().items())
    assert read.ignored == []


def without_zip(path):
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


def other_archive(path):
    with ZipFile(path, 'w') as archive:
        archive.writestr('photo.jpg', bytes(1000))


@pytest.mark.parametrize(
    ('name', 'make', 'kept', 'reason'),
    [
        ('w.safetensors', lambda path: write_checkpoint(path, STATE, META), 300, 'Error while deserializing header: '),
        ('w.npz', lambda path: np.savez(path, a=np.ones(1000)), 500, 'File is not a zip file'),
        ('w.pth', without_zip, 20, 'it is truncated'),
        ('w.pth', without_zip, -30, 'unexpected EOF'),
        ('w.pth', other_archive, None, 'it is an archive that torch.save did not write'),
    ],
)
def test_damage_is_reported_for_files_without_checksums_too(name, make, kept, reason, tmp_path):
    path = tmp_path / name
    make(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedCheckpointError, match=f'^checkpoint {re.escape(str(path))} is damaged: {reason}'):
        read_checkpoint(path)


def test_arrays_of_objects_are_rejected(tmp_path):
    np.savez(tmp_path / 'objects.npz', a=np.array([Code()], dtype=object))
    with pytest.raises(ValueError, match='allow_pickle=False'):
        read_checkpoint(tmp_path / 'objects.npz')


def test_files_without_tensors_and_missing_files_are_rejected(tmp_path):
    torch.save({'epoch': 3}, tmp_path / 'empty.pth')
    with pytest.raises(
        ValueError, match=r'empty.pth has no tensors: a state dict is expected, or one under state_dict'
    ):
        read_checkpoint(tmp_path / 'empty.pth')
    with pytest.raises(FileNotFoundError, match=r"^checkpoint '.*gone.pth' does not exist$"):
        read_checkpoint(tmp_path / 'gone.pth')


def test_safetensors_without_the_package_names_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setattr('wsbcn_mm.engine.checkpoint.reading.find_spec', lambda name: None)
    (tmp_path / 'weights.safetensors').touch()
    with pytest.raises(ImportError, match=r'lacks: pip install safetensors==[\d.]+$'):
        read_checkpoint(tmp_path / 'weights.safetensors')
    with pytest.raises(ImportError, match='need the package safetensors'):
        write_checkpoint(tmp_path / 'out.safetensors', STATE, META)
