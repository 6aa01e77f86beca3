"""Predict with a trained model: python tools/predict.py CHECKPOINT photos/ 'more/*.jpg' --out predictions

The recipe is in the checkpoint. Images give overlays with a legend and PNGs of class ids; videos give class scores, and
with --window a row for each window of a long video. Both give predictions.csv and predictions.json. Images above 16.8
million pixels are cut in overlapping tiles. Files of tools/export.py are accepted in place of a checkpoint.
"""

import argparse
import os
import sys


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint, or file of tools/export.py')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='images or videos: files, folders, globs')
    parser.add_argument('--out', default='predictions', help='folder for the results (default: predictions)')
    parser.add_argument('--recipe', help='recipe file, for a checkpoint that has none in it')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    parser.add_argument(
        '--batch-size', type=int, help='images of one size, tiles, clips or windows at once (default: 1)'
    )
    parser.add_argument('--no-pictures', action='store_true', help='write no overlays or strips')
    images = parser.add_argument_group('models of images')
    images.add_argument('--tile', help="side of a tile, N or HEIGHTxWIDTH; 'off' for none (default: auto)")
    images.add_argument('--overlap', type=int, help='pixels that tiles share (default: a quarter of a tile)')
    images.add_argument('--max-value', type=float, help='value that becomes 255 in images of more than 8 bits')
    images.add_argument('--opacity', type=float, help='of the colours in overlays, 0 to 1 (default: 0.6)')
    videos = parser.add_argument_group('models of videos')
    videos.add_argument(
        '--window', type=float, help="seconds of a sliding window; 0 for the span of the recipe's clips"
    )
    videos.add_argument('--step', type=float, help='seconds between windows (default: half a window)')
    videos.add_argument('--fps', type=float, help='frames per second of folders of images')
    videos.add_argument('--top', type=int, help='classes of a clip or window in the CSV (default: 5)')
    videos.add_argument('--annotate', action='store_true', default=None, help='write an mp4 with the classes on it')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Before torch is imported: OpenMP threads that wait by spinning make a busy CPU up to 50 times slower.
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    from wsbcn_mm.inference.predict import predict

    try:
        failed = predict(
            args.checkpoint,
            args.inputs,
            args.out,
            recipe=args.recipe,
            device=args.device,
            pictures=not args.no_pictures,
            batch_size=args.batch_size,
            tile=args.tile and tile_of(args.tile),
            overlap=args.overlap,
            max_value=args.max_value,
            opacity=args.opacity,
            window=args.window,
            step=args.step,
            fps=args.fps,
            top=args.top,
            annotated=args.annotate,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))
    if failed:
        sys.exit(1)


def tile_of(text: str) -> str | list[int]:
    """Return 'auto', 'off', or [height, width] of 'N' or 'HEIGHTxWIDTH'."""
    if text in ('auto', 'off'):
        return text
    height, _, width = text.partition('x')
    try:
        return [int(height), int(width or height)]
    except ValueError:
        raise ValueError(f"--tile {text!r}: N, HEIGHTxWIDTH, 'auto' or 'off' is expected") from None


if __name__ == '__main__':
    main()
