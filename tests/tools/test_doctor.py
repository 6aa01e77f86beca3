"""tools/doctor.py in a complete environment and in an empty one."""

import os
import re
import subprocess
import sys

import pytest

from tests.tools.tiny_runs import ROOT, run_tool


def test_a_whole_environment(capsys):
    with pytest.raises(SystemExit) as ended:
        run_tool('doctor.py')
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f'wsbcn_mm in {ROOT / "wsbcn_mm"}\nPython {sys.version.split()[0]}, ')


def test_an_empty_environment_gets_the_command_to_install(tmp_path):
    """Python without packages, except for the metadata of this one."""
    done = doctor_in(tmp_path)
    assert done.returncode == 1
    assert done.stderr == ('wsbcn_mm is not installed. To install it:\n    python tools/set_up.py\n')
    needs = ['torch>=2.11', 'decord2>=3.4; extra == "video"', 'onnx>=1.18; extra == "deploy"']
    lines = ['Metadata-Version: 2.1', 'Name: wsbcn_mm', 'Version: 0.1.0', *(f'Requires-Dist: {need}' for need in needs)]
    for file, text in {'wsbcn_mm/__init__.py': '', 'wsbcn_mm-0.1.0.dist-info/METADATA': '\n'.join(lines)}.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    done = doctor_in(tmp_path)
    assert done.returncode == 1
    head, _, command = done.stderr.strip().partition('\n    ')
    assert head == 'wsbcn_mm: the recipes need other packages. To install them:'
    assert re.match(r'pip install torch==[\d.]+ decord2==[\d.]+ ', command)
    assert re.search(r'^torch +-  +[\d.]+ +missing$', done.stdout, re.MULTILINE)
    assert re.search(r'^onnx +-  +[\d.]+ +not installed \(deploy\)$', done.stdout, re.MULTILINE)


def doctor_in(folder):
    command = [sys.executable, '-S', str(ROOT / 'tools' / 'doctor.py')]
    return subprocess.run(
        command, env=os.environ | dict(PYTHONPATH=str(folder)), capture_output=True, text=True, timeout=60
    )
