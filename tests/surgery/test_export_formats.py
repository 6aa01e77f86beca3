"""Every format of an exported network: dynamic axes work, and errors name the remedy."""

import pytest
import torch
from torch import nn

from wsbcn_mm.engine.export import compare, load_exported
from wsbcn_mm.layers import BatchChannelNorm, WSConv2d
from wsbcn_mm.surgery.export import FORMATS, SUFFIXES, export
from wsbcn_mm.surgery.fold import fold

AXES = {0: 'batch', 2: 'height', 3: 'width'}


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    unfolded = nn.Sequential(
        WSConv2d(3, 8, 3, stride=2, padding=1, bias=False),
        BatchChannelNorm(8, 4),
        nn.ReLU(),
        BatchChannelNorm(8, 2),
        nn.Conv2d(8, 5, 1),
    )
    nn.init.uniform_(unfolded[1].running_var, 0.2, 2.0)
    return fold(unfolded, torch.randn(2, 3, 8, 8))[0]


@pytest.mark.parametrize('to', FORMATS)
def test_a_file_gives_what_the_network_gives_at_every_size(to, network, tmp_path):
    path = tmp_path / f'network{SUFFIXES[to]}'
    export(network, torch.randn(2, 3, 8, 8), path, to=to, axes=AXES)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    run = load_exported(path)
    for shape in [(1, 3, 8, 8), (3, 3, 7, 12), (1, 3, 33, 5)]:
        x = torch.randn(shape)
        torch.testing.assert_close(run(x), network(x), rtol=1e-5, atol=1e-5)
        assert not run(x).requires_grad


def test_two_networks_are_compared_position_by_position():
    classes = torch.tensor([[[0.0, 3.0, 1.0], [1.0, 0.0, 2.0]]])  # (N, K, L)
    found = compare(lambda x: x, lambda x: x + torch.tensor([[[4.0], [0.0]]]), classes, repeats=1)
    assert found[:4] == ((1, 2, 3), 4.0, 3.0, pytest.approx(1 / 3))
    assert min(found.original_ms, found.exported_ms) > 0
    assert (
        str(found)
        .lstrip()
        .startswith('1 x 2 x 3: differs by 4.0e+00 where outputs reach 3.0e+00, same class 33.33 %, ')
    )


def test_what_cannot_be_exported_is_refused(network, tmp_path):
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^to='tensorrt': one of onnx, torch_export is expected$"):
        export(network, x, tmp_path / 'a', to='tensorrt', axes=AXES)
    with pytest.raises(ValueError, match=r'^the model still has 1 WSConv2d: fold it first, with '):
        export(nn.Sequential(WSConv2d(3, 4, 1)), x, tmp_path / 'a', to='onnx', axes=AXES)
    with pytest.raises(
        ValueError,
        match=r'^example of shape \(1, 3, 8, 1\): at least 2 is expected along batch \(axis 0\), width \(axis 3\), to ',
    ):
        export(network, x[:1, ..., :1], tmp_path / 'a', to='torch_export', axes=AXES)
    strided = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.GroupNorm(2, 4)).requires_grad_(False)
    with pytest.raises(ValueError, match=r'length 1, which limits height \(axis 2\) to 4 in the file: a larger '):
        export(strided, x[:, :, :4], tmp_path / 'a', to='torch_export', axes=AXES)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^path='a\.pth': a file with the suffix \.onnx or \.pt2 is expected$"):
        load_exported('a.pth')
