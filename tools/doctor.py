"""Check whether the environment can run the recipes: python tools/doctor.py

Print every package with its version, the tested version and a verdict, then compiler, accelerator and video decoders.
One command is given to fix all problems. The exit code is 1 if recipes cannot run.
"""

import argparse
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
PACKAGES = (HERE.parents[1] / 'wsbcn_mm', HERE.parents[2])
"""Folder of the package in a clone, and if this file is installed as part of the package."""


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    # Run as a file: importing the package needs packages that may be missing.
    (environment,) = (file for folder in PACKAGES if (file := folder / 'engine' / 'environment.py').is_file())
    return runpy.run_path(str(environment))['main']()


if __name__ == '__main__':
    sys.exit(main())
