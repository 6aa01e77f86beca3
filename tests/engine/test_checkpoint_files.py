"""Files are read without running what is in them, and written with what is known of them."""

import hashlib
import re

import numpy as np
import pytest
import torch

from wsbcn_mm.engine.checkpoint_files import read_checkpoint, sha256, write_checkpoint

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


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'dear')
    with pytest.raises(FileExistsError, match=f'^{re.escape(str(path))} exists already, and is not overwritten$'):
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
    assert message.startswith(f'{path} needs code to be read, not tensors and plain data alone (')
    assert f'{Code.__module__}.Code' in message
    assert message.endswith(
        'A file like this can run anything: if you know where it comes from, tools/convert_checkpoint.py --trust makes '
        'weights alone of it'
    )
    assert read_checkpoint(path, trust=True).ignored == ['args']


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
    monkeypatch.setattr('wsbcn_mm.engine.checkpoint_files.find_spec', lambda name: None)
    (tmp_path / 'weights.safetensors').touch()
    with pytest.raises(ImportError, match=r"lacks: pip install -c constraints.txt -e '.\[convert\]'$"):
        read_checkpoint(tmp_path / 'weights.safetensors')
    with pytest.raises(ImportError, match='need the package safetensors'):
        write_checkpoint(tmp_path / 'out.safetensors', STATE, META)


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / 'file').write_bytes(data)
    assert sha256(tmp_path / 'file') == hashlib.sha256(data).hexdigest()
