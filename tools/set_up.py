"""Install this package and its dependencies into the environment of the Python that runs this file.

Installed versions of torch and torchvision are kept. All other packages get the versions of constraints.txt. Finally
tools/doctor.py imports everything and reports problems.
"""

from __future__ import annotations  # so that an older Python can report that it is too old

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
    """Return the tested versions, with the `installed` versions in place of their tested ones."""
    lines = [line for line in tested.splitlines() if line.split('==')[0] not in installed]
    return '\n'.join([*lines, *(f'{name}=={version}' for name, version in installed.items())]) + '\n'


def installed_versions() -> dict[str, str]:
    """Return the versions of the `KEPT` packages in this environment."""
    names = {d.metadata['Name'] for d in metadata.distributions()}
    return {name: metadata.version(name) for name in KEPT if name in names}


def accepted_versions(project: str) -> dict[str, str]:
    """Return the bounds of the `KEPT` packages in the text of pyproject.toml."""
    return {name: re.findall(rf'"{name}(>=[\d.]+)"', project)[0] for name in KEPT}


def main() -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 - users of an older Python should read why it stops
        print(f'wsbcn_mm needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}', file=sys.stderr)
        return 1
    # Run as a file: importing the package needs packages that are not installed yet.
    environment = runpy.run_path(str(ROOT / 'wsbcn_mm' / 'engine' / 'environment.py'))
    message = environment['stock_packages_message'](environment['installed_distributions']())
    if message:
        print(f'wsbcn_mm: {message}', file=sys.stderr)
        return 1
    installed, accepted = installed_versions(), accepted_versions((ROOT / 'pyproject.toml').read_text())
    old = [name for name in installed if not environment['is_accepted'](installed[name], accepted[name])]
    if old:
        found = ', '.join(f'{name} {installed[name]} is installed, {name}{accepted[name]} is needed' for name in old)
        print(f'wsbcn_mm: {found}:\n    pip install --upgrade torch torchvision', file=sys.stderr)
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
