"""Compile a C file of this package on first use, once per machine and source, and load it.

The compiler is `CC` or `cc`. Without a compiler, or with WSBCN_MM_COMPILE=0, callers fall back to torch's own
operators. Compiled libraries are cached in WSBCN_MM_CACHE, by default ~/.cache/wsbcn_mm.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

FLAGS = ('-O3', '-march=native', '-fopenmp', '-fno-math-errno', '-fno-trapping-math', '-fPIC', '-shared')

# RuntimeError: the user has no home. ValueError: CC has an unclosed quotation mark or unreadable output.
FAILURES = (OSError, RuntimeError, ValueError, subprocess.SubprocessError)


@functools.cache
def load_library(source: Path) -> ctypes.CDLL | None:
    """The shared library of `source`, or None if it is switched off or cannot be compiled, which is logged."""
    if os.environ.get('WSBCN_MM_COMPILE', '1') == '0':
        return None
    try:
        return ctypes.CDLL(str(build_library(source)))
    except FAILURES as error:
        logging.getLogger(__name__).warning(
            '%s was not compiled; BCN on CPU uses slower operators of torch: %s',
            source,
            getattr(error, 'stderr', None) or error,
        )
        return None


def build_library(source: Path) -> Path:
    """The file of the shared library of `source`, compiled if it does not exist yet.

    Raises:
        One of `FAILURES`: If there is no compiler, compilation fails, or the folder cannot be written.
    """
    compiler = shlex.split(os.environ.get('CC', 'cc'))
    library = _cache_folder() / f'{source.stem}-{_fingerprint(source, compiler)}.so'
    if not library.exists():
        _compile(source, library, compiler)
    return library


def _cache_folder() -> Path:
    folder = Path(os.environ.get('WSBCN_MM_CACHE') or Path.home() / '.cache' / 'wsbcn_mm').absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint(source: Path, compiler: list[str]) -> str:
    """A hash of all that the machine code depends on. Machines with different processors may share a home."""
    version = subprocess.run([*compiler, '--version'], check=True, capture_output=True, text=True).stdout
    cpu_info = Path('/proc/cpuinfo')
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())
    parts = (source.read_text(), ' '.join(FLAGS), version, platform.machine(), features)
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _compile(source: Path, library: Path, compiler: list[str]) -> None:
    # Ranks may compile at the same time: each renames a complete file into place.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        subprocess.run(
            [*compiler, *FLAGS, str(source), '-o', str(made), '-lm'],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        made.replace(library)
