"""Check the installed packages against those that the recipes need.

    python tools/doctor.py

prints the installed and the tested versions, and a command that repairs what is wrong. Until the check is done, only
the standard library is imported. This file also runs without its package.
"""

import operator
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]

NVIDIA_DRIVER = Path('/dev/nvidiactl')

FORKS = {
    'mmengine': 'onedl-mmengine',
    'mmengine-lite': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmcv-lite': 'onedl-mmcv',
    'mmcv-full': 'onedl-mmcv',
    'mmsegmentation': 'onedl-mmsegmentation',
}
"""OpenMMLab's own distributions, and the maintained forks that install into the same folders."""

MODULES = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmseg': 'onedl-mmsegmentation',
    'decord': 'decord2',
    'av': 'av',
}
"""Modules that the recipes import, and the distributions that provide them."""

NEEDED = {
    '': ('mmengine', 'mmcv'),
    'segmentation': ('torchvision', 'mmengine', 'mmcv', 'mmseg'),
    'video': ('torchvision', 'mmengine', 'mmcv'),
}
"""Modules that a part of this package needs on import."""

SAME_MODULES = {'decord2': 'decord', 'opencv-python': 'opencv-python-headless'}
"""Alternative distributions of the same modules."""

RECIPES = ('', 'segmentation', 'video')
"""Extras that the recipes need. Distributions of other extras are reported, but may be missing."""


class Package(NamedTuple):
    """An installed, tested or required distribution, and the verdict on it."""

    name: str
    installed: str | None
    tested: str | None
    verdict: str
    wrong: bool

    def row(self) -> tuple[str, str, str, str]:
        return self.name, self.installed or '-', self.tested or '-', self.verdict


class Finding(NamedTuple):
    """A finding on a part of the machine, and a command that helps, if there is one."""

    name: str
    text: str
    command: str | None = None


def installed_distributions() -> set[str]:
    """Return the normalised names of the installed distributions."""
    return {name.lower().replace('_', '-') for d in metadata.distributions() if (name := d.metadata['Name'])}


def stock_packages_message(installed: Iterable[str]) -> str | None:
    """Return how to replace stock OpenMMLab packages among `installed`; None if there are none."""
    stock = sorted(set(FORKS) & set(installed))
    if not stock:
        return None
    forks = sorted({FORKS[name] for name in FORKS})
    return (
        f'stock OpenMMLab packages are installed ({", ".join(stock)}). They share folders with their maintained '
        f'forks ({", ".join(forks)}), and uninstalling one breaks the other. Use a fresh environment, or run\n'
        f'    pip uninstall -y {" ".join(stock)} {" ".join(forks)}\n'
        f'    pip install {" ".join(forks)}'
    )


def require_openmmlab(part: str = '') -> None:
    """Raise ImportError with a remedy if stock OpenMMLab packages are installed or `part` lacks a package.

    Args:
        part: 'segmentation', 'video', or '' for what both need.
    """
    message = stock_packages_message(installed_distributions())
    if message:
        raise ImportError(message)
    missing = [module for module in NEEDED[part] if find_spec(module) is None]
    if missing:
        raise ImportError(
            f'{f"wsbcn_mm.{part} needs" if part else "the tools need"} {", ".join(missing)}, which '
            f'{"is" if len(missing) == 1 else "are"} not installed. To install:\n'
            f'    {pip_install([MODULES[module] for module in missing])}'
        )


def import_error(module: str) -> str | None:
    """Return one line on why `module` cannot be imported; None if it can."""
    try:
        import_module(module)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ''
        if 'torchvision::nms does not exist' in text:
            text = (
                "torchvision's native code does not match this torch (for example a CPU-only torch and PyPI's "
                'torchvision): install both from the same source'
            )
        return f'{module}: {type(error).__name__}: {text}'
    return None


def tested_versions() -> dict[str, str]:
    """Return the tested version of each distribution, from constraints.txt; empty if the package lacks this file."""
    file = PACKAGE / '.mim' / 'constraints.txt'
    return dict(re.findall(r'^([\w-]+)==([\w.]+)', file.read_text(), re.MULTILINE)) if file.is_file() else {}


def requirements() -> dict[str, tuple[str, str]]:
    """Return (accepted versions, first extra that requires it) of every requirement, by distribution.

    The result is empty if this package is on the path without being installed.
    """
    try:
        lines = metadata.requires('wsbcn_mm') or []
    except metadata.PackageNotFoundError:
        lines = []
    found: dict[str, tuple[str, str]] = {}
    for line in lines:
        parts = re.fullmatch(r'([\w-]+)([^\[;]*?)\s*(?:;.*extra == [\'"](\w+)[\'"].*)?', line)
        if parts:
            found.setdefault(parts[1], (parts[2], parts[3] or ''))
    return found


def is_accepted(version: str, bounds: str) -> bool:
    """Return whether a version such as '2.12.0+cu130' is within bounds such as '>=2.11,<3'."""
    signs = {'>=': operator.ge, '<': operator.lt, '==': operator.eq}
    found = re.findall(r'(>=|<|==)([\d.]+)', bounds)
    return all(signs[sign](numbers(version), numbers(bound)) for sign, bound in found)


def numbers(version: str) -> list[int]:
    """Split a version: '2.12.0+cu130' -> [2, 12, 0]."""
    return [int(number) for number in re.findall(r'\d+', version.split('+')[0])]


def pip_install(names: Iterable[str]) -> str:
    """Return the command that installs these distributions in their tested versions."""
    tested = tested_versions()
    return ' '.join(['pip install', *(f'{name}=={tested[name]}' if name in tested else name for name in names)])


def reinstall(names: Iterable[str]) -> str:
    """Return the command that reinstalls these distributions, whatever is installed."""
    return pip_install(names).replace('install', 'install --force-reinstall', 1)


def packages() -> list[Package]:
    """Return every tested or required distribution."""
    tested, required = tested_versions(), requirements()
    failures = {MODULES[module]: error for module in MODULES if (error := import_error(module))}
    found = []
    for name in dict.fromkeys([*required, *tested]):
        version = installed_version(name)
        bounds, extra = required.get(name, ('', 'not required'))
        needed = extra in RECIPES or name in MODULES.values()
        if name in failures and version and needed:
            verdict, wrong = failures[name], True
        elif version is None:
            verdict, wrong = ('missing', True) if needed else (f'not installed ({extra})', False)
        elif not is_accepted(version, bounds):
            verdict, wrong = f'{bounds} is needed', needed
        else:
            same = name not in tested or numbers(version) == numbers(tested[name])
            verdict, wrong = 'ok' if same else 'ok, but not the tested version', False
        found.append(Package(name, version, tested.get(name), verdict, wrong))
    return found


def installed_version(name: str) -> str | None:
    """Return the version of a distribution or of its alternative; None if neither is installed."""
    for distribution in (name, SAME_MODULES.get(name, name)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def accelerator() -> Finding:
    """Report the GPUs that torch can use, or why it cannot use any."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        text = ', '.join(f'{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)' for gpu in names)
        return Finding('accelerator', f'{text}; torch was built with CUDA {torch.version.cuda or torch.version.hip}')
    if not NVIDIA_DRIVER.exists():
        return Finding('accelerator', 'none: everything runs on CPU')
    unusable = 'torch cannot use the NVIDIA GPU: '
    if torch.version.cuda is None:
        return Finding('accelerator', f'{unusable}it was built without CUDA', reinstall(['torch', 'torchvision']))
    return Finding('accelerator', f'{unusable}its CUDA {torch.version.cuda} may need a newer driver', 'nvidia-smi')


def compiler() -> Finding:
    """Report whether BCN's passes on CPU run in C, and with how many threads."""
    import torch

    # An absolute import: this file also runs without its package.
    from wsbcn_mm.ops.bcn.c_library import FAILURES, build_library

    if os.environ.get('WSBCN_MM_COMPILE') == '0':
        return Finding('C compiler', 'switched off by WSBCN_MM_COMPILE=0: BCN on CPU is slower')
    try:
        build_library(PACKAGE / 'ops' / 'bcn' / 'c.c')
    except FAILURES as error:
        reason = str(getattr(error, 'stderr', None) or error).strip().splitlines()[-1]
        text = f'ops/bcn/c.c cannot be compiled, so BCN on CPU is slower: {reason}'
        return Finding('C compiler', text, 'apt-get install gcc libc6-dev')
    name = os.environ.get('CC', 'cc')
    return Finding('C compiler', f'{name} compiled ops/bcn/c.c, OpenMP with {torch.get_num_threads()} threads')


def decoders() -> Finding:
    """Report the versions of the video decoders and of PyAV's FFmpeg."""
    import av
    import decord

    return Finding(
        'decoders', f'decord {decord.__version__}, PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info}'
    )


def repair(found: Iterable[Package]) -> str | None:
    """Return the command that repairs what is wrong; None if nothing is."""
    wrong = [one for one in found if one.wrong]
    absent = [one.name for one in wrong if one.installed is None or one.verdict.endswith('is needed')]
    if absent or not wrong:
        return pip_install(absent) if absent else None
    # Installed, but not importable: torch and torchvision must come from the same source.
    broken = {one.name for one in wrong}
    if broken & {'torch', 'torchvision'}:
        broken = {'torch', 'torchvision'}
    return reinstall(sorted(broken))


def main() -> int:
    """Print what is installed and how to repair what is wrong. Return 1 if the recipes cannot run, else 0."""
    print(f'wsbcn_mm in {PACKAGE}\nPython {sys.version.split()[0]}, {sys.executable}\n', flush=True)
    stock = stock_packages_message(installed_distributions())
    if stock:
        print(f'wsbcn_mm: {stock}', file=sys.stderr)
        return 1
    if find_spec('wsbcn_mm') is None:
        print(
            'wsbcn_mm is not installed. To install it:\n    python tools/set_up.py',
            file=sys.stderr,
        )
        return 1
    found = packages()
    print(table([('package', 'installed', 'tested with', 'verdict'), *(one.row() for one in found)]), flush=True)
    command = repair(found)
    if command:
        print(
            '\nwsbcn_mm: the recipes need other packages. To install them:\n    ' + command,
            file=sys.stderr,
        )
        return 1
    print()
    for finding in (compiler(), accelerator(), decoders()):
        print(f'{finding.name}: {finding.text}')
        if finding.command:
            print(f'    {finding.command}')
    print('\nall packages that the recipes need are installed')
    return 0


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as lines of aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == '__main__':
    sys.exit(main())
