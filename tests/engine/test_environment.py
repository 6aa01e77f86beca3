"""What is installed is judged before it is used, and each fault has one line that says what to do."""

import sys

import pytest

from wsbcn_mm.engine import environment
from wsbcn_mm.engine.environment import import_error, installed_distributions, main, stock_packages_message

TWO_STOCK = (
    'stock OpenMMLab packages are installed (mmcv-lite, mmengine). They own the same folders as their maintained '
    'continuations (onedl-mmcv, onedl-mmengine, onedl-mmsegmentation), and uninstalling one breaks the other. '
    'Use a fresh environment, or run\n'
    '    pip uninstall -y mmcv-lite mmengine onedl-mmcv onedl-mmengine onedl-mmsegmentation\n'
    '    pip install onedl-mmcv onedl-mmengine onedl-mmsegmentation'
)


def add_distribution(folder, name):
    """A distribution as pip leaves it, found through sys.path."""
    info = folder / f'{name}-1.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')


def test_stock_packages_are_named_with_what_to_do():
    assert stock_packages_message(['torch', 'mmengine', 'onedl-mmengine', 'mmcv-lite']) == TWO_STOCK


def test_the_maintained_continuations_are_fine():
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
    assert printed.out == ''
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
        "mixed_vision: RuntimeError: torchvision's native part does not fit this torch (a CPU-only torch with the "
        "registry's torchvision): install both from the same source"
    )


def test_main_prints_every_version_or_every_fault(monkeypatch, capsys):
    assert main() == 0
    line = capsys.readouterr().out
    assert line.startswith('wsbcn_mm: torch ')
    assert line.count('\n') == 1
    assert all(f'{name} {sys.modules[name].__version__}' in line for name in ('torchvision', 'mmengine', 'mmseg'))

    monkeypatch.setattr(environment, 'MODULES', ('torch', 'missing_a', 'missing_b'))
    assert main() == 1
    assert capsys.readouterr().err.splitlines() == [
        "wsbcn_mm: missing_a: ModuleNotFoundError: No module named 'missing_a'",
        "wsbcn_mm: missing_b: ModuleNotFoundError: No module named 'missing_b'",
    ]
