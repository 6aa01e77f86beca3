"""tools/set_up.py keeps an installed torch and stops where it cannot help; make sets up once."""

import importlib.util
import os
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTED = '# What the tests run with.\ntorch==2.14.1\ntorchvision==0.29.2\nnumpy==2.4.6\n'


@pytest.fixture
def set_up():
    """The script as a module, freshly loaded."""
    spec = importlib.util.spec_from_file_location('set_up', ROOT / 'tools' / 'set_up.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ('installed', 'expected'),
    [
        ({}, TESTED),
        (
            {'torch': '2.12.0+cu130', 'torchvision': '0.27.0+cu130'},
            '# What the tests run with.\nnumpy==2.4.6\ntorch==2.12.0+cu130\ntorchvision==0.27.0+cu130\n',
        ),
        ({'torch': '2.11.0'}, '# What the tests run with.\ntorchvision==0.29.2\nnumpy==2.4.6\ntorch==2.11.0\n'),
    ],
)
def test_what_is_installed_stays_and_the_rest_is_as_tested(installed, expected, set_up):
    assert set_up.constraints(TESTED, installed) == expected


def test_the_versions_of_this_environment_are_found(set_up):
    assert set_up.installed_versions() == {name: metadata.version(name) for name in ('torch', 'torchvision')}


def test_every_constraint_is_an_exact_version(set_up):
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pins = [line for line in lines if not line.startswith('#')]
    assert pins
    assert all(len(line.split('==')) == 2 for line in pins)
    assert {'torch', 'torchvision'} <= {line.split('==')[0] for line in pins}


def test_an_old_python_is_rejected(set_up, monkeypatch, capsys):
    version = namedtuple('version', 'major minor micro')
    monkeypatch.setattr(set_up.sys, 'version_info', version(3, 8, 10))
    monkeypatch.setattr(set_up.subprocess, 'run', lambda *args, **kwargs: pytest.fail('nothing may be installed'))
    assert set_up.main() == 1
    assert capsys.readouterr().err.startswith(f'wsbcn_mm needs Python 3.10 or newer; {sys.executable} is ')


def test_stock_packages_stop_the_set_up_even_where_nothing_imports(tmp_path):
    """An environment without torch, with a broken mmengine."""
    (tmp_path / 'mmengine').mkdir()
    (tmp_path / 'mmengine' / '__init__.py').write_text('import torch\n')
    info = tmp_path / 'mmengine-0.10.7.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: mmengine\nVersion: 0.10.7\n')
    command = [sys.executable, '-S', str(ROOT / 'tools' / 'set_up.py')]
    done = subprocess.run(
        command, env=os.environ | dict(PYTHONPATH=str(tmp_path)), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith('wsbcn_mm: stock OpenMMLab packages are installed (mmengine). ')
    assert 'Traceback' not in done.stderr
    assert done.stdout == ''


def test_an_old_torch_is_rejected_before_anything_is_installed(tmp_path):
    info = tmp_path / 'torch-2.9.1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1+cu126\n')
    command = [sys.executable, '-S', str(ROOT / 'tools' / 'set_up.py')]
    done = subprocess.run(
        command, env=os.environ | dict(PYTHONPATH=str(tmp_path)), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr == (
        'wsbcn_mm: torch 2.9.1+cu126 is installed, torch>=2.11 is needed:\n'
        '    pip install --upgrade torch torchvision\n'
    )


def test_where_pip_fails_its_reason_is_the_last_word(set_up, monkeypatch, capsys):
    failing = [sys.executable, '-c', 'raise SystemExit(7)']
    run = subprocess.run
    monkeypatch.setattr(set_up.subprocess, 'run', lambda command: run(failing))
    assert set_up.main() == 7
    assert capsys.readouterr().err == 'wsbcn_mm: pip did not install everything; the lines above say why\n'


def make(target, environment):
    """Return the commands that make would run, without the flags of a make that runs these tests."""
    command = ['make', '--dry-run', '--no-print-directory', target, f'ENV={environment}']
    ours = {name: value for name, value in os.environ.items() if name not in ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')}
    done = subprocess.run(command, cwd=ROOT, env=ours, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_make_sets_up_once(tmp_path):
    python = f'{tmp_path}/bin/python'
    first = make('demo', tmp_path)
    assert first == [
        f'test -x {python} || python3 -m venv {tmp_path}',
        f'{python} tools/set_up.py',
        f'touch {tmp_path}/.wsbcn_mm-ready',
        f'{python} -m projects.micro_batch_demo.run',
    ]
    (tmp_path / '.wsbcn_mm-ready').touch()
    assert make('demo', tmp_path) == first[-1:]
    assert make('demo-full', tmp_path) == [f'{python} -m projects.micro_batch_demo.run --full']
    assert any('-m pytest' in line for line in make('test', tmp_path))
    assert not any('set_up' in line for line in make('test', tmp_path))
