"""Publish a checkpoint: python tools/publish.py CHECKPOINT work_dirs/NAME/metrics.json published/NAME

Write NAME.safetensors (only weights), NAME.py (the config of the training) and NAME.json (classes, norm recipe,
metrics, SHA-256). `python tools/test.py NAME.py NAME.safetensors` evaluates them.
"""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint of tools/train.py')
    parser.add_argument('metrics', help='metrics.json of tools/test.py for this checkpoint')
    parser.add_argument('out', help='path of the new files without suffix; they must not exist')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before the import of torch: spinning OpenMP threads make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.engine.environment import require_openmmlab

    require_openmmlab()
    from wsbcn_mm.engine.checkpoint.publishing import publish

    try:
        print(*publish(args.checkpoint, args.metrics, args.out), sep='\n')
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'not published: {error}')


if __name__ == '__main__':
    main()
