"""Install this package and what it needs into the environment whose Python runs this file.

A torch and torchvision that are there already stay as they are; everything else comes in the versions of
constraints.txt. Ends with tools/doctor.py, which imports all of it and says what is wrong, if anything is.
"""

from __future__ import annotations  # so that an older Python gets as far as saying that it is too old

import re
import runpy
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ('torch', 'torchvision')


def constraints(tested: str, installed: dict[str, str]) -> str:
    """The tested versions, but for what is `installed` already its own version."""
    lines = [line for line in tested.splitlines() if line.split('==')[0] not in installed]
    return '\n'.join([*lines, *(f'{name}=={version}' for name, version in installed.items())]) + '\n'


def installed_versions() -> dict[str, str]:
    """Versions of the `KEPT` packages that this environment has."""
    names = {d.metadata['Name'] for d in metadata.distributions()}
    return {name: metadata.version(name) for name in KEPT if name in names}


def accepted_versions(project: str) -> dict[str, str]:
    """Bounds of the `KEPT` packages in the text of pyproject.toml."""
    return {name: re.findall(rf'"{name}(>=[\d.]+)"', project)[0] for name in KEPT}


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever has an older Python should read why it stops here
        print(f'wsbcn_mm needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}', file=sys.stderr)
        return 1
    # As a file, since importing the package needs what is about to be installed.
    environment = runpy.run_path(str(ROOT / 'wsbcn_mm' / 'engine' / 'environment.py'))
    message = environment['stock_packages_message'](environment['installed_distributions']())
    if message:
        print(f'wsbcn_mm: {message}', file=sys.stderr)
        return 1
    installed, accepted = installed_versions(), accepted_versions((ROOT / 'pyproject.toml').read_text())
    old = [name for name in installed if not environment['is_accepted'](installed[name], accepted[name])]
    if old:
        there = ', '.join(f'{name} {installed[name]}, and {name}{accepted[name]} is needed' for name in old)
        print(f'wsbcn_mm: there is {there}:\n    pip install --upgrade torch torchvision', file=sys.stderr)
        return 1
    print('Setting up: about two minutes, 6 GB with torch ...', flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'constraints.txt'
        file.write_text(constraints((ROOT / 'constraints.txt').read_text(), installed))
        pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
        code = subprocess.run([*pip, '--constraint', str(file), '--editable', f'{ROOT}[test]']).returncode
    if code:
        print('wsbcn_mm: pip did not install everything; the lines above say why', file=sys.stderr)
        return code
    return subprocess.run([sys.executable, str(ROOT / 'tools' / 'doctor.py')]).returncode


if __name__ == '__main__':
    sys.exit(main())
