"""Publish a checkpoint: python tools/publish.py CHECKPOINT work_dirs/NAME/metrics.json published/NAME

Writes NAME.safetensors (weights alone), NAME.py (the config they were trained with) and NAME.json (classes, norm
recipe, metrics, SHA-256). `python tools/test.py NAME.py NAME.safetensors` evaluates them.
"""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint that tools/train.py wrote')
    parser.add_argument('metrics', help='metrics.json that tools/test.py wrote for it')
    parser.add_argument('out', help='what the files are called; they must not exist')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before torch is imported: OpenMP threads that wait by spinning make a busy CPU up to 50 times slower.
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
