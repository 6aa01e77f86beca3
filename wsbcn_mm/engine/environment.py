"""Is what is installed what the recipes need?

    python tools/doctor.py

prints what is there beside what the tests run with, and for whatever is wrong the command that makes it right. Nothing
but the standard library is imported before it has been looked at, and this file runs without its package.
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
"""OpenMMLab's own distributions and the maintained continuations that install into the same folders."""

MODULES = {
    'torch': 'torch',
    'torchvision': 'torchvision',
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmseg': 'onedl-mmsegmentation',
    'decord': 'decord2',
    'av': 'av',
}
"""What the recipes import, and the distribution that has it."""

NEEDED = {
    '': ('mmengine', 'mmcv'),
    'segmentation': ('torchvision', 'mmengine', 'mmcv', 'mmseg'),
    'video': ('torchvision', 'mmengine', 'mmcv'),
}
"""Modules that a part of this package cannot be imported without."""

SAME_MODULES = {'decord2': 'decord', 'opencv-python': 'opencv-python-headless'}
"""Distributions that do as well as those named first."""

RECIPES = ('', 'segmentation', 'video')
"""Extras that the recipes need; those of the others are reported and not missed."""


class Package(NamedTuple):
    """An installed, tested or required distribution, and what is to be said of it."""

    name: str
    installed: str | None
    tested: str | None
    verdict: str
    wrong: bool

    def row(self) -> tuple[str, str, str, str]:
        return self.name, self.installed or '-', self.tested or '-', self.verdict


class Finding(NamedTuple):
    """What is to be said of a part of the machine, and the command that would help, if one would."""

    name: str
    text: str
    command: str | None = None


def installed_distributions() -> set[str]:
    """Names of the installed distributions, normalised."""
    return {name.lower().replace('_', '-') for d in metadata.distributions() if (name := d.metadata['Name'])}


def stock_packages_message(installed: Iterable[str]) -> str | None:
    """What to do about stock OpenMMLab packages among `installed`; None if there are none."""
    stock = sorted(set(FORKS) & set(installed))
    if not stock:
        return None
    forks = sorted({FORKS[name] for name in FORKS})
    return (
        f'stock OpenMMLab packages are installed ({", ".join(stock)}). They own the same folders as their maintained '
        f'continuations ({", ".join(forks)}), and uninstalling one breaks the other. Use a fresh environment, or run\n'
        f'    pip uninstall -y {" ".join(stock)} {" ".join(forks)}\n'
        f'    pip install {" ".join(forks)}'
    )


def require_openmmlab(part: str = '') -> None:
    """Raise ImportError with what to do where stock OpenMMLab packages are installed, or what `part` needs is not.

    Args:
        part: 'segmentation', 'video' or, for what both need, nothing.
    """
    message = stock_packages_message(installed_distributions())
    if message:
        raise ImportError(message)
    missing = [module for module in NEEDED[part] if find_spec(module) is None]
    if missing:
        raise ImportError(
            f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} not installed, which '
            f'{f"wsbcn_mm.{part}" if part else "the tools"} cannot do without:\n'
            f'    {pip_install([MODULES[module] for module in missing])}'
        )


def import_error(module: str) -> str | None:
    """One line on why `module` does not import; None if it does."""
    try:
        import_module(module)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ''
        if 'torchvision::nms does not exist' in text:
            text = (
                "torchvision's native part does not fit this torch (a CPU-only torch with the registry's torchvision): "
                'install both from the same source'
            )
        return f'{module}: {type(error).__name__}: {text}'
    return None


def tested_versions() -> dict[str, str]:
    """Versions that the tests run with, by distribution: those of constraints.txt, none where links were not copied."""
    file = PACKAGE / '.mim' / 'constraints.txt'
    return dict(re.findall(r'^([\w-]+)==([\w.]+)', file.read_text(), re.MULTILINE)) if file.is_file() else {}


def requirements() -> dict[str, tuple[str, str]]:
    """(versions that are accepted, the first extra that asks for it) of every requirement, by distribution.

    Empty where this package is on the path without being installed.
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
    """Whether '2.12.0+cu130' is within '>=2.11,<3'."""
    signs = {'>=': operator.ge, '<': operator.lt, '==': operator.eq}
    found = re.findall(r'(>=|<|==)([\d.]+)', bounds)
    return all(signs[sign](numbers(version), numbers(bound)) for sign, bound in found)


def numbers(version: str) -> list[int]:
    """'2.12.0+cu130' -> [2, 12, 0]."""
    return [int(number) for number in re.findall(r'\d+', version.split('+')[0])]


def pip_install(names: Iterable[str]) -> str:
    """The command that installs these distributions in the versions that the tests run with."""
    tested = tested_versions()
    return ' '.join(['pip install', *(f'{name}=={tested[name]}' if name in tested else name for name in names)])


def reinstall(names: Iterable[str]) -> str:
    """The command that replaces these distributions, whatever is there."""
    return pip_install(names).replace('install', 'install --force-reinstall', 1)


def packages() -> list[Package]:
    """Every distribution that the tests run with or that is required."""
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
    """Version of a distribution or of the one that has the same modules, None if there is neither."""
    for distribution in (name, SAME_MODULES.get(name, name)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def accelerator() -> Finding:
    """The GPUs that torch can use, or why it uses none."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        text = ', '.join(f'{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)' for gpu in names)
        return Finding('accelerator', f'{text}; torch was built with CUDA {torch.version.cuda or torch.version.hip}')
    if not NVIDIA_DRIVER.exists():
        return Finding('accelerator', 'none: everything runs on CPU')
    there = 'there is an NVIDIA GPU that torch cannot use: '
    if torch.version.cuda is None:
        return Finding('accelerator', f'{there}it was built without CUDA', reinstall(['torch', 'torchvision']))
    return Finding('accelerator', f'{there}its CUDA {torch.version.cuda} may need a newer driver', 'nvidia-smi')


def compiler() -> Finding:
    """Whether BCN's passes on CPU run in C, with how many threads."""
    import torch

    # By name: this file also runs without its package.
    from wsbcn_mm.ops.bcn.c_library import FAILURES, build_library

    if os.environ.get('WSBCN_MM_COMPILE') == '0':
        return Finding('C compiler', 'switched off by WSBCN_MM_COMPILE=0: BCN on CPU is slower')
    try:
        build_library(PACKAGE / 'ops' / 'bcn' / 'c.c')
    except FAILURES as error:
        reason = str(getattr(error, 'stderr', None) or error).strip().splitlines()[-1]
        text = f'BCN on CPU is slower, because ops/bcn/c.c cannot be compiled: {reason}'
        return Finding('C compiler', text, 'apt-get install gcc libc6-dev')
    name = os.environ.get('CC', 'cc')
    return Finding('C compiler', f'{name} has compiled ops/bcn/c.c, OpenMP with {torch.get_num_threads()} threads')


def decoders() -> Finding:
    """The video decoders and FFmpeg's version in PyAV."""
    import av
    import decord

    return Finding(
        'decoders', f'decord {decord.__version__}, PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info}'
    )


def repair(found: Iterable[Package]) -> str | None:
    """The command that makes right what is wrong; None if nothing is."""
    wrong = [one for one in found if one.wrong]
    absent = [one.name for one in wrong if one.installed is None or one.verdict.endswith('is needed')]
    if absent or not wrong:
        return pip_install(absent) if absent else None
    # What is there and does not import: torch and torchvision must come from the same source.
    broken = {one.name for one in wrong}
    if broken & {'torch', 'torchvision'}:
        broken = {'torch', 'torchvision'}
    return reinstall(sorted(broken))


def main() -> int:
    """Print what is there, and how to make right what is wrong; returns 1 if the recipes cannot run."""
    print(f'wsbcn_mm in {PACKAGE}\nPython {sys.version.split()[0]}, {sys.executable}\n', flush=True)
    stock = stock_packages_message(installed_distributions())
    if stock:
        print(f'wsbcn_mm: {stock}', file=sys.stderr)
        return 1
    if find_spec('wsbcn_mm') is None:
        print('wsbcn_mm: not installed. To install it and what it needs:\n    python tools/set_up.py', file=sys.stderr)
        return 1
    found = packages()
    print(table([('package', 'installed', 'tested with', 'verdict'), *(one.row() for one in found)]), flush=True)
    command = repair(found)
    if command:
        print('\nwsbcn_mm: what the recipes need is not all there. To install it:\n    ' + command, file=sys.stderr)
        return 1
    print()
    for finding in (compiler(), accelerator(), decoders()):
        print(f'{finding.name}: {finding.text}')
        if finding.command:
            print(f'    {finding.command}')
    print('\neverything that the recipes need is there')
    return 0


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == '__main__':
    sys.exit(main())
