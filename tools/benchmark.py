"""Time and memory of WS and BCN beside BatchNorm, GroupNorm, the plain formulas and mmcv's ConvWS.

python tools/benchmark.py                    everything, into projects/operator_benchmark/results, then both READMEs
python tools/benchmark.py --sections norms   one section; the others keep their rows
python tools/benchmark.py --quick            tiny shapes, into work_dirs/benchmark, to see that everything runs
python tools/benchmark.py --report           tables and pictures anew from the CSV files, without measuring
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], help='default: cuda where there is a GPU')
    parser.add_argument('--sections', nargs='+', choices=['norms', 'weights', 'steps'], help='default: all')
    dtypes = ['float32', 'bfloat16', 'float16']
    parser.add_argument('--dtypes', nargs='+', choices=dtypes, help='default: float32, and bfloat16 on a GPU')
    layouts = ['contiguous', 'channels_last']
    parser.add_argument('--layouts', nargs='+', choices=layouts, default=layouts, help='default: both')
    parser.add_argument('--threads', type=int, help='of the CPU operators (default: the cores of this process)')
    parser.add_argument('--rounds', type=int, help='of the operators (default: 30)')
    parser.add_argument('--step-rounds', type=int, help='of the training steps (default: 7)')
    parser.add_argument('--leave-out', nargs='+', default=[], metavar='SIDE', help='sides not to measure')
    parser.add_argument('--quick', action='store_true', help='tiny shapes and models, three rounds')
    parser.add_argument('--report', action='store_true', help='only make tables and pictures from the CSV files')
    parser.add_argument('--out', type=Path, help='folder of the results; the READMEs show those of the default one')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before torch is imported: OpenMP threads that wait by spinning make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # Projects are not installed.
    sys.path.insert(0, str(ROOT))
    from projects.operator_benchmark.run import run_command

    run_command(args)


if __name__ == '__main__':
    main()
