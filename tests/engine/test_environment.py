"""Installed packages are checked before they are used, and each fault has one line with its remedy."""

from importlib import metadata

import pytest
import torch

from wsbcn_mm.engine import environment
from wsbcn_mm.engine.environment import (
    MODULES,
    accelerator,
    compiler,
    import_error,
    installed_distributions,
    is_accepted,
    main,
    repair,
    requirements,
    stock_packages_message,
)

TWO_STOCK = (
    'stock OpenMMLab packages are installed (mmcv-lite, mmengine). They share folders with their maintained '
    'forks (onedl-mmcv, onedl-mmengine, onedl-mmsegmentation), and uninstalling one breaks the other. '
    'Use a fresh environment, or run\n'
    '    pip uninstall -y mmcv-lite mmengine onedl-mmcv onedl-mmengine onedl-mmsegmentation\n'
    '    pip install onedl-mmcv onedl-mmengine onedl-mmsegmentation'
)


def add_distribution(folder, name):
    """Create the metadata of an installed distribution."""
    info = folder / f'{name}-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')


def test_stock_packages_are_named_with_a_remedy():
    assert stock_packages_message(['torch', 'mmengine', 'onedl-mmengine', 'mmcv-lite']) == TWO_STOCK


def test_the_maintained_forks_are_accepted():
    assert stock_packages_message(['torch', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation']) is None
    environment.require_openmmlab()


@pytest.mark.parametrize('stock', ['mmengine-lite', 'mmcv_full', 'MMSegmentation'])
def test_a_stock_package_on_the_path_stops_the_import(stock, tmp_path, monkeypatch, capsys):
    add_distribution(tmp_path, stock)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = stock.lower().replace('_', '-')
    assert name in installed_distributions()
    with pytest.raises(ImportError, match=rf'^stock OpenMMLab packages are installed \({name}\)\.'):
        environment.require_openmmlab()
    assert main() == 1
    printed = capsys.readouterr()
    assert 'torch' not in printed.out
    assert printed.err.startswith(f'wsbcn_mm: stock OpenMMLab packages are installed ({name}). ')


def test_a_module_that_does_not_import_is_one_line(tmp_path, monkeypatch):
    assert import_error('json') is None
    assert import_error('no_such_module') == "no_such_module: ModuleNotFoundError: No module named 'no_such_module'"
    (tmp_path / 'breaks_on_import.py').write_text("raise RuntimeError('libcudart.so.13: cannot open\\nlong story')\n")
    (tmp_path / 'no_reason.py').write_text('raise OSError\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_error('breaks_on_import') == 'breaks_on_import: RuntimeError: libcudart.so.13: cannot open'
    assert import_error('no_reason') == 'no_reason: OSError: '


def test_a_torchvision_built_for_another_torch_is_explained(tmp_path, monkeypatch):
    (tmp_path / 'mixed_vision.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_error('mixed_vision') == (
        "mixed_vision: RuntimeError: torchvision's native code does not match this torch (for example a CPU-only torch "
        "and PyPI's torchvision): install both from the same source"
    )


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(environment, 'find_spec', lambda name: None if name.startswith('mm') else name)
    tested = environment.tested_versions()
    with pytest.raises(ImportError) as error:
        environment.require_openmmlab('video')
    assert str(error.value) == (
        'wsbcn_mm.video needs mmengine, mmcv, which are not installed. To install:\n'
        f'    pip install onedl-mmengine=={tested["onedl-mmengine"]} onedl-mmcv=={tested["onedl-mmcv"]}'
    )


def test_the_table_has_every_package_with_its_version(capsys):
    assert main() == 0
    printed = capsys.readouterr()
    rows = {line.split()[0]: line.split() for line in printed.out.splitlines() if line}
    for name in MODULES.values():
        assert rows[name][1:3] == [metadata.version(name), environment.tested_versions()[name]]
        assert rows[name][3].startswith('ok')
    assert 'accelerator:' in rows
    assert (
        f'\ndecoders: decord {metadata.version("decord2")}, PyAV {metadata.version("av")} with FFmpeg ' in printed.out
    )
    assert printed.out.endswith('\n\nall packages that the recipes need are installed\n')
    assert printed.err == ''


def test_missing_and_old_packages_have_one_command_and_optional_ones_none(monkeypatch, capsys):
    needed = {'torch': ('>=2.11', ''), 'rich': ('>=99', 'video'), 'decord9': ('>=3.4', 'video')}
    monkeypatch.setattr(
        environment, 'requirements', lambda: needed | {'onnx9': ('>=1', 'deploy'), 'timm': ('', 'test')}
    )
    monkeypatch.setattr(environment, 'tested_versions', lambda: {'rich': '99.1', 'torch': '2.11.7', 'decord9': '3.4.0'})
    monkeypatch.setattr(environment, 'MODULES', {})
    assert main() == 1
    printed = capsys.readouterr()
    verdicts = {line.split()[0]: line.split(maxsplit=3)[3] for line in printed.out.split('\n\n')[1].splitlines()[1:]}
    assert verdicts == {
        'torch': 'ok, but not the tested version',
        'rich': '>=99 is needed',
        'decord9': 'missing',
        'onnx9': 'not installed (deploy)',
        'timm': 'ok',
    }
    assert printed.err == (
        '\nwsbcn_mm: the recipes need other packages. To install them:\n    pip install rich==99.1 decord9==3.4.0\n'
    )


def test_a_torchvision_that_does_not_import_is_reinstalled_with_torch(tmp_path, monkeypatch):
    (tmp_path / 'mixed_again.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(environment, 'MODULES', {'mixed_again': 'torchvision'})
    tested = environment.tested_versions()
    assert repair(environment.packages()) == (
        f'pip install --force-reinstall torch=={tested["torch"]} torchvision=={tested["torchvision"]}'
    )


@pytest.mark.parametrize(
    ('version', 'bounds', 'accepted'),
    [
        ('2.12.0+cu130', '>=2.11', True),
        ('2.9.1', '>=2.11', False),
        ('0.11.0', '<0.11,>=0.10.12', False),
        ('0.10.12', '<0.11,>=0.10.12', True),
        ('0.17.6', '==0.17.5', False),
        ('1.0', '', True),
    ],
)
def test_versions_are_compared_as_numbers(version, bounds, accepted):
    assert is_accepted(version, bounds) is accepted


def test_the_requirements_are_those_of_the_package():
    found = requirements()
    assert found['torch'] == ('>=2.11', '')
    assert found['decord2'] == ('>=3.4', 'video')
    assert found['onnx'][1] == 'deploy'
    assert set(found) <= set(environment.tested_versions())


def test_a_missing_compiler_is_reported_without_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv('WSBCN_MM_CACHE', str(tmp_path))
    monkeypatch.setenv('CC', 'no-such-compiler')
    found = compiler()
    assert found.text.startswith('ops/bcn/c.c cannot be compiled, so BCN on CPU is slower: ')
    assert "'no-such-compiler'" in found.text
    assert found.command == 'apt-get install gcc libc6-dev'
    monkeypatch.setenv('WSBCN_MM_COMPILE', '0')
    assert compiler() == ('C compiler', 'switched off by WSBCN_MM_COMPILE=0: BCN on CPU is slower', None)


def test_the_accelerator_is_named(monkeypatch):
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in accelerator().text
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(environment, 'NVIDIA_DRIVER', environment.PACKAGE / 'gone')
    assert accelerator() == ('accelerator', 'none: everything runs on CPU', None)
    monkeypatch.setattr(environment, 'NVIDIA_DRIVER', environment.PACKAGE)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    assert accelerator().text == 'torch cannot use the NVIDIA GPU: its CUDA 13.0 may need a newer driver'
    monkeypatch.setattr(torch.version, 'cuda', None)
    assert accelerator().command.startswith('pip install --force-reinstall torch==')
