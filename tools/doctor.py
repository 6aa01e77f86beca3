"""Is what is installed what the recipes need? python tools/doctor.py

Prints every package with its version, that of the tests and a verdict, then compiler, accelerator and video decoders.
For what is wrong there is one command. Exits with 1 if recipes cannot run.
"""

import argparse
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
PACKAGES = (HERE.parents[1] / 'wsbcn_mm', HERE.parents[2])
"""The package in a clone, and where this file is a part of the package."""


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    # As a file: importing the package needs what may be missing.
    (environment,) = (file for folder in PACKAGES if (file := folder / 'engine' / 'environment.py').is_file())
    return runpy.run_path(str(environment))['main']()


if __name__ == '__main__':
    sys.exit(main())
