"""Build the two toy data sets from data that ships with scikit-learn, in the formats of the real ones.

Segmentation has Cityscapes' folders and label PNGs, video has Something-Something v2's files and H.264 clips. The same
parameters always give the same files. A set that exists with these parameters is not built again.

python -m projects.toy_data.data --root data/micro_batch_demo --contact-sheet sheet.png
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from projects.toy_data import appearance, clips, scenes
from projects.toy_data.contact_sheet import write_contact_sheet

MANIFEST = 'manifest.json'
SCENES = dict(n_train=2400, n_val=200, size=64, digit_size=(28, 52), digits_per_scene=(2, 3), digits=(0, 1, 4))
CLIPS = dict(n_train=2400, n_val=200, size=40)
"""Parameters of the scenes and clips that the studies train on."""


def build_segmentation(
    root: str | Path,
    n_train: int = 2000,
    n_val: int = 200,
    size: int = 96,
    digit_size: tuple[int, int] = (20, 48),
    digits_per_scene: tuple[int, int] = (2, 5),
    digits: Sequence[int] = tuple(range(10)),
    seed: int = 0,
    console: Console | None = None,
) -> Path:
    """Build `<root>/seg` in Cityscapes' layout: `{leftImg8bit,gtFine}/{train,val}/<city>/*.png`.

    Args:
        root: Folder of both sets.
        n_train: Number of training scenes.
        n_val: Number of validation scenes.
        size: Height and width of a scene in pixels.
        digit_size: Smallest and largest side of a digit in pixels; sizes are log-uniform.
        digits_per_scene: Fewest and most digits of a scene. A digit without room is left out of its scene.
        digits: The digits that occur; the i-th has label i + 1.
        seed: Seed of everything random.
        console: Where progress is shown.

    Returns:
        The folder `<root>/seg`.

    Raises:
        ValueError: If a parameter is out of range, or the folder has other files.
    """
    _check_counts(n_train, n_val, digits)
    _check_range('digit_size', digit_size, 8, size)
    _check_range('digits_per_scene', digits_per_scene, 1, 100)
    parameters = {
        'n_train': n_train,
        'n_val': n_val,
        'size': size,
        'digit_size': tuple(digit_size),
        'digits_per_scene': tuple(digits_per_scene),
        'digits': tuple(digits),
        'seed': seed,
    }
    return _build(Path(root) / 'seg', 'scenes', scenes.write_segmentation, parameters, console)


def build_video(
    root: str | Path,
    n_train: int = 1500,
    n_val: int = 200,
    size: int = 64,
    frames: int = 16,
    fps: int = 12,
    digits: Sequence[int] = tuple(range(10)),
    seed: int = 0,
    console: Console | None = None,
) -> Path:
    """Build `<root>/video` in Something-Something v2's layout: `videos/<id>.mp4` and three JSON files.

    Args:
        root: Folder of both sets.
        n_train: Number of training clips.
        n_val: Number of validation clips.
        size: Height and width of a clip in pixels, even.
        frames: Frames of a clip.
        fps: Frames per second.
        digits: The digits that move.
        seed: Seed of everything random.
        console: Where progress is shown.

    Returns:
        The folder `<root>/video`.

    Raises:
        ValueError: If a parameter is out of range, or the folder has other files.
    """
    _check_counts(n_train, n_val, digits)
    if size < 16 or size % 2:
        raise ValueError(f'size={size}: an even number (for H.264 yuv420p), at least 16, is expected')
    if frames < 2 or fps < 1:
        raise ValueError(f'frames={frames}, fps={fps}: at least 2 frames and 1 frame per second are expected')
    parameters = {
        'n_train': n_train,
        'n_val': n_val,
        'size': size,
        'frames': frames,
        'fps': fps,
        'digits': tuple(digits),
        'seed': seed,
    }
    return _build(Path(root) / 'video', 'clips', clips.write_video, parameters, console)


def _check_counts(n_train: int, n_val: int, digits: Sequence[int]) -> None:
    if n_train < 1 or n_val < 1:
        raise ValueError(f'n_train={n_train}, n_val={n_val}: at least 1 of each is expected')
    if not digits or len(set(digits)) != len(digits) or not set(digits) <= set(range(10)):
        raise ValueError(f'digits={list(digits)}: different numbers from 0 to 9 are expected')


def _check_range(name: str, pair: Sequence[int], lowest: int, highest: int) -> None:
    if len(pair) != 2 or not lowest <= pair[0] <= pair[1] <= highest:
        raise ValueError(f'{name}={list(pair)}: two numbers in order, from {lowest} to {highest}, are expected')


def _fingerprint(parameters: dict) -> str:
    """Return a hash that changes with a parameter or with the code that draws."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for module in (appearance, scenes, clips):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()


def _build(folder: Path, what: str, write: Callable, parameters: dict, console: Console | None) -> Path:
    """Write into a neighbour folder and rename it at the end, so an interrupted build leaves no incomplete set."""
    console = console or Console()
    fingerprint = _fingerprint(parameters)
    manifest = folder / MANIFEST
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        present = sum(path.is_file() for path in folder.rglob('*')) - 1
        if found['fingerprint'] == fingerprint and found['files'] == present:
            console.print(f'{folder}: {parameters["n_train"]} + {parameters["n_val"]} {what} exist already')
            return folder
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f'{folder} has files but no {MANIFEST}: choose another root or empty the folder')

    partial = folder.with_name(f'{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(f'drawing {what}', total=parameters['n_train'] + parameters['n_val'])
        write(partial, **parameters, advance=lambda: progress.advance(task))
    files = sum(path.is_file() for path in partial.rglob('*'))
    summary = {'fingerprint': fingerprint, 'files': files, 'parameters': parameters}
    (partial / MANIFEST).write_text(json.dumps(summary, indent=1) + '\n')
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', type=Path, default=Path('data/micro_batch_demo'))
    parser.add_argument('--task', choices=('all', 'segmentation', 'video'), default='all')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--scenes', type=int, nargs=2, default=(2000, 200), metavar=('TRAIN', 'VAL'))
    parser.add_argument('--scene-size', type=int, default=96)
    parser.add_argument('--digit-size', type=int, nargs=2, default=(20, 48), metavar=('MIN', 'MAX'))
    parser.add_argument('--digits-per-scene', type=int, nargs=2, default=(2, 5), metavar=('MIN', 'MAX'))
    parser.add_argument('--digits', type=int, nargs='+', default=tuple(range(10)))
    parser.add_argument('--clips', type=int, nargs=2, default=(1500, 200), metavar=('TRAIN', 'VAL'))
    parser.add_argument('--clip-size', type=int, default=64)
    parser.add_argument('--frames', type=int, default=16)
    parser.add_argument('--contact-sheet', type=Path, help='also write a PNG with some scenes and clips')
    args = parser.parse_args(arguments)
    console = Console()
    if args.task != 'video':
        build_segmentation(
            args.root,
            n_train=args.scenes[0],
            n_val=args.scenes[1],
            size=args.scene_size,
            digit_size=args.digit_size,
            digits_per_scene=args.digits_per_scene,
            digits=args.digits,
            seed=args.seed,
            console=console,
        )
    if args.task != 'segmentation':
        build_video(
            args.root,
            n_train=args.clips[0],
            n_val=args.clips[1],
            size=args.clip_size,
            frames=args.frames,
            digits=args.digits,
            seed=args.seed,
            console=console,
        )
    if args.contact_sheet:
        console.print(f'{write_contact_sheet(args.root, args.contact_sheet)}: scenes and clips')


if __name__ == '__main__':
    main()
