"""mmengine's CheckpointLoader reads URLs and published weights without running code in them."""

import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from mmengine.runner import CheckpointLoader

import wsbcn_mm.engine.checkpoint.loading  # noqa: F401  registers the loaders
from wsbcn_mm.engine.checkpoint.writing import write_checkpoint


class Harm:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def address(tmp_path, monkeypatch):
    """(folder that a server serves, its URL), with an empty cache folder."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    (tmp_path / 'served').mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / 'served'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / 'served', f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_downloaded_checkpoints_are_read_like_local_ones(address, tmp_path):
    served, url = address
    torch.save({'state_dict': {'steps': torch.ones(1)}}, served / 'good.pth')
    torch.save({'code': Harm(tmp_path / 'harmed')}, served / 'bad.pth')
    for _ in range(2):  # the second one comes from the cache
        assert CheckpointLoader.load_checkpoint(f'{url}/good.pth?v=1')['state_dict']['steps'].item() == 1
        (served / 'good.pth').unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r'hub/checkpoints/bad.pth needs code to be read'):
        CheckpointLoader.load_checkpoint(f'{url}/bad.pth')
    assert not (tmp_path / 'harmed').exists()
    with pytest.raises(OSError, match='404'):
        CheckpointLoader.load_checkpoint(f'{url}/gone.pth')


def test_published_weights_are_loaded(tmp_path):
    write_checkpoint(tmp_path / 'w.safetensors', {'steps': torch.ones(1)}, {'fingerprint': {}})
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'w.safetensors'))
    assert loaded['state_dict']['steps'].item() == 1
    assert loaded['meta'] == {'fingerprint': {}}
