"""Files are read without running what is in them, and written with what is known of them."""

import hashlib
import re
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torch import nn

from wsbcn_mm.engine.checkpoint.reading import DamagedCheckpointError, read_checkpoint, sha256, write_checkpoint

STATE = {'conv1.weight': torch.arange(24.0).view(4, 2, 3, 1).transpose(0, 1), 'bn1.bias': torch.ones(4)}
META = {'fingerprint': {'conv1': {'conv': 'WS', 'variant': 'jhu', 'eps': 1e-5}}, 'source': 'here'}


class Code:
    """What a pickle cannot be read without."""


@pytest.mark.parametrize('name', ['weights.pth', 'weights.safetensors', 'folder/weights.pth'])
def test_what_is_written_is_read(name, tmp_path):
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
    with pytest.raises(FileExistsError, match=f'^{re.escape(str(path))} already exists and is not overwritten$'):
        write_checkpoint(path, STATE, META)
    assert path.read_bytes() == b'dear'


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


def test_a_pickle_that_needs_code_says_so_and_is_read_on_trust(tmp_path):
    path = tmp_path / 'code.pth'
    torch.save({'state_dict': STATE, 'args': Code()}, path)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - its text is compared below
        read_checkpoint(path)
    message = str(refused.value)
    assert message.startswith(f'{path} contains more than tensors and plain data, and reading it would run code (')
    assert f'{Code.__module__}.Code' in message
    assert message.endswith('If you trust its origin, tools/convert_checkpoint.py --trust converts it to weights')
    assert read_checkpoint(path, trust=True).ignored == ['args']


@pytest.mark.filterwarnings('ignore:.*TorchScript')
@pytest.mark.parametrize(
    'save',
    [torch.save, lambda module, path: torch.save({'model': module}, path), lambda m, f: torch.jit.script(m).save(f)],
    ids=['module', 'in a dict', 'TorchScript'],
)
def test_of_a_whole_module_the_weights_are_taken_on_trust(save, tmp_path):
    module, path = nn.Linear(2, 3), tmp_path / 'module.pth'
    save(module, path)
    with pytest.raises(ValueError, match=rf'^{path} contains more than tensors and plain data'):
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
        ('w.pth', without_zip, 20, 'it ends too soon'),
        ('w.pth', without_zip, -30, 'unexpected EOF'),
        ('w.pth', other_archive, None, 'it is an archive, but not one of torch.save'),
    ],
)
def test_damage_is_said_of_files_without_checksums_too(name, make, kept, reason, tmp_path):
    path = tmp_path / name
    make(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedCheckpointError, match=f'^checkpoint {re.escape(str(path))} is damaged: {reason}'):
        read_checkpoint(path)


def test_arrays_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / 'objects.npz', a=np.array([Code()], dtype=object))
    with pytest.raises(ValueError, match='allow_pickle=False'):
        read_checkpoint(tmp_path / 'objects.npz')


def test_files_without_tensors_and_files_that_are_not_there(tmp_path):
    torch.save({'epoch': 3}, tmp_path / 'empty.pth')
    with pytest.raises(
        ValueError, match=r'empty.pth has no tensors: a state dict is expected, or one under state_dict'
    ):
        read_checkpoint(tmp_path / 'empty.pth')
    with pytest.raises(FileNotFoundError, match=r"^checkpoint '.*gone.pth' does not exist$"):
        read_checkpoint(tmp_path / 'gone.pth')


def test_safetensors_without_the_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr('wsbcn_mm.engine.checkpoint.reading.find_spec', lambda name: None)
    (tmp_path / 'weights.safetensors').touch()
    with pytest.raises(ImportError, match=r'lacks: pip install safetensors==[\d.]+$'):
        read_checkpoint(tmp_path / 'weights.safetensors')
    with pytest.raises(ImportError, match='need the package safetensors'):
        write_checkpoint(tmp_path / 'out.safetensors', STATE, META)


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / 'file').write_bytes(data)
    assert sha256(tmp_path / 'file') == hashlib.sha256(data).hexdigest()
