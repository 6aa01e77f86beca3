"""The demo: build the data, train every recipe with tools/train.py, evaluate it with tools/test.py, report.

python -m projects.micro_batch_demo.run            one seed, a part of the runs: about ten minutes on two cores
python -m projects.micro_batch_demo.run --full     three seeds, every norm in every setting; writes results/
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from projects.common.tiny_recipes import MODELS, find_recipe
from projects.micro_batch_demo.records import RunRecord
from projects.micro_batch_demo.report import Picture, update_table, write_report
from projects.toy_data import data

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NORMS = ('bn', 'gn', 'gn-ws', 'bcn-ws')
SETTINGS = ('1xb1-acc1', '1xb1-acc16', '1xb16-acc1')
SHORT = {('bn', '1xb16-acc1'), ('gn-ws', '1xb1-acc16'), ('bcn-ws', '1xb1-acc16')}
"""The runs of the short demo with a batch of 16."""
METRICS = {'segmentation': ('mIoU', 'mIoU'), 'video': ('top-1', 'acc/top1')}
"""Name of the metric in the report and in the log."""
SAMPLES = 2400
"""Training samples of every run, as in configs/_base_/schedules/demo-*.py."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Run:
    """One recipe with one seed."""

    task: str
    norm: str
    setting: str
    seed: int
    recipe: Path
    work_dir: Path

    @property
    def label(self) -> str:
        return f'{self.task} {self.norm} {self.setting} seed {self.seed}'

    @property
    def samples(self) -> int:
        return SAMPLES

    @property
    def per_device(self) -> int:
        return int(self.setting.split('xb')[1].split('-')[0])

    @property
    def accumulation(self) -> int:
        return int(self.setting.split('acc')[1])


def plan(work_dir: Path, *, full: bool, seeds: int) -> list[Run]:
    """Return the runs of the demo, long ones first so that two workers finish together."""
    chosen = [
        (task, norm, setting, seed)
        for seed in range(seeds)
        for setting in SETTINGS
        for task in MODELS
        for norm in NORMS
        if full or setting == SETTINGS[0] or (norm, setting) in SHORT
    ]
    return [
        Run(task, norm, setting, seed, find_recipe(task, norm, setting), work_dir / f'{task}_{norm}_{setting}_{seed}')
        for task, norm, setting, seed in sorted(chosen, key=lambda run: run[2] == '1xb16-acc1')
    ]


def commands(run: Run) -> Iterator[tuple[str, list[str]]]:
    """Yield the names and command lines of a run: training, then evaluation of its checkpoint."""
    tool = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(run.recipe)]
    yield 'train', [*tool, '--work-dir', str(run.work_dir), '--cfg-options', f'randomness.seed={run.seed}']
    checkpoint = (run.work_dir / 'last_checkpoint').read_text().strip()
    tool = [sys.executable, str(ROOT / 'tools' / 'test.py'), str(run.recipe), checkpoint]
    yield 'test', [*tool, '--work-dir', str(run.work_dir / 'test'), '--show-dir', str(run.work_dir / 'pictures')]


def execute(run: Run, progress: Progress) -> RunRecord:
    """Train and evaluate one run in child processes of one thread each, and show the progress of training."""
    shutil.rmtree(run.work_dir, ignore_errors=True)
    run.work_dir.mkdir(parents=True)
    bar = progress.add_task(run.label, total=run.samples)
    peak = None
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONPATH': str(ROOT)}
    for name, command in commands(run):
        log = run.work_dir / f'{name}.log'
        with log.open('wb') as output:
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        code, memory = wait(child, lambda: progress.update(bar, completed=samples_seen(run)))
        if code:
            progress.update(bar, description=f'{run.label}: failed')
            return record(run, failure=f'{name} failed: {reason(code, log)}')
        peak = memory if name == 'train' else peak
    result = record(run, peak_memory_mib=peak)
    progress.update(bar, completed=run.samples, description=f'{run.label}: {result.metric_name} {result.metric:.1f}')
    return result


def wait(child: subprocess.Popen[bytes], meanwhile: Callable[[], None]) -> tuple[int, float]:
    """Return the exit code and the peak resident memory in MiB of a child process; call `meanwhile` regularly.

    Linux counts at least the memory that this process had when it started the child.
    """
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage.ru_maxrss / 1024
        meanwhile()
        time.sleep(POLL_SECONDS)


def record(run: Run, *, failure: str | None = None, peak_memory_mib: float | None = None) -> RunRecord:
    """Return the record of a run from the files in its work_dir."""
    name, key = METRICS[run.task]
    scalars = read_scalars(run.work_dir)
    train = [line for line in scalars if 'loss' in line]
    scores = [line for line in scalars if key in line]
    tested = run.work_dir / 'test' / 'metrics.json'
    return RunRecord(
        task=run.task,
        norm=run.norm,
        per_device=run.per_device,
        accumulation=run.accumulation,
        seed=run.seed,
        metric_name=name,
        metric=json.loads(tested.read_text())[key] if tested.is_file() else None,
        train_seconds=train_seconds(train),
        peak_memory_mib=peak_memory_mib,
        samples_seen=samples_seen(run),
        optimizer_steps=samples_seen(run) // (run.per_device * run.accumulation),
        metric_curve=tuple((line['step'] * run.per_device, line[key]) for line in scores),
        loss_curve=tuple((line['step'] * run.per_device, line['loss']) for line in train),
        work_dir=os.path.relpath(run.work_dir, ROOT),
        failure=failure,
    )


def train_seconds(train: Sequence[dict]) -> float | None:
    """Return the time of all training iterations; a line has the mean time of the iterations since the last line."""
    if not train:
        return None
    steps = [0, *(line['step'] for line in train)]
    return sum(line['time'] * (step - before) for line, before, step in zip(train, steps[:-1], steps[1:], strict=True))


def samples_seen(run: Run) -> int:
    """Return the number of training samples of a run so far, from its log."""
    return max((line['step'] for line in read_scalars(run.work_dir) if 'loss' in line), default=0) * run.per_device


def read_scalars(work_dir: Path) -> list[dict]:
    """Return all complete lines that training in a work_dir has logged."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = files[-1].read_text().splitlines() if files else []
    return [json.loads(line) for line in lines if line.endswith('}')]


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty, where Python prints the error."""
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1] if lines else 'no output'


def reason(code: int, log: Path) -> str:
    """Return why a child process ended: its error, or the signal that killed it (9 if memory is full)."""
    if code > 0:
        return last_line(log)
    return f'killed by signal {-code} ({signal.Signals(-code).name}), after: {last_line(log)}'


def execute_all(runs: Sequence[Run], workers: int, console: Console) -> list[RunRecord]:
    """Execute all runs, `workers` at a time."""
    columns = (
        TextColumn('{task.description}', table_column=Column(min_width=46)),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn('samples'),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(workers) as pool:
        whole = progress.add_task('all runs', total=sum(run.samples for run in runs))
        done = []
        for result in pool.map(lambda run: execute(run, progress), runs):
            done.append(result)
            progress.advance(whole, runs[len(done) - 1].samples)
            if not console.is_terminal:
                outcome = result.reason or f'{result.metric_name} {result.metric:.1f}'
                console.print(f'{len(done)}/{len(runs)} {runs[len(done) - 1].label}: {outcome}')
        return done


def pictures(runs: Sequence[Run], folder: Path) -> list[Picture]:
    """Return one picture per task: the same samples under every norm, at one sample per step."""
    found = []
    for task, what in (('segmentation', 'image | truth | prediction'), ('video', 'frames with truth and prediction')):
        rows = [run for run in runs if run.task == task and run.setting == SETTINGS[0] and run.seed == 0]
        path = sheet([(run.norm, sorted((run.work_dir / 'pictures').glob('*.png'))[:4]) for run in rows], folder, task)
        if path:
            found.append(Picture(f'Predictions, {task}', path, f'One sample per step; {what}.'))
    return found


def sheet(rows: Sequence[tuple[str, Sequence[Path]]], folder: Path, task: str) -> Path | None:
    """Write a PNG with a labelled block of pictures for each norm; return None if there are no pictures."""
    blocks = [(norm, [Image.open(path).convert('RGB') for path in paths]) for norm, paths in rows if paths]
    if not blocks:
        return None
    across = 4 if task == 'segmentation' else 1
    margin, label = 6, 56
    width = max(image.width for _, images in blocks for image in images) + margin
    height = max(image.height for _, images in blocks for image in images) + margin
    down = max(-(-len(images) // across) for _, images in blocks)
    canvas = Image.new('RGB', (label + width * across, height * down * len(blocks)), 'white')
    draw = ImageDraw.Draw(canvas)
    for row, (norm, images) in enumerate(blocks):
        draw.text((4, row * height * down + height // 2), norm, fill='black')
        for index, image in enumerate(images):
            place = (label + index % across * width, (row * down + index // across) * height)
            canvas.paste(image, place)
    path = folder / f'predictions_{task}.png'
    canvas.save(path)
    return path


def build_data(root: Path, console: Console) -> None:
    """Build both data sets of the demo."""
    data.build_segmentation(root, **data.SCENES, console=console)
    data.build_video(root, **data.CLIPS, console=console)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--full', action='store_true', help='every norm in every setting; writes results/ and tables')
    parser.add_argument('--seeds', type=int, help='default: 1, or 3 with --full')
    parser.add_argument('--workers', type=int, default=max(1, min(2, os.cpu_count() or 1)), help='runs at a time')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'micro_batch_demo')
    args = parser.parse_args(arguments)
    args.work_dir = args.work_dir.resolve()
    console = Console()
    started = time.time()
    build_data(ROOT / 'data' / 'micro_batch_demo', console)
    runs = plan(args.work_dir, full=args.full, seeds=args.seeds or (3 if args.full else 1))
    console.print(f'{len(runs)} runs, {args.workers} at a time; logs in {args.work_dir}')
    records = execute_all(runs, args.workers, console)
    folder = HERE / 'results' if args.full else args.work_dir / 'report'
    folder.mkdir(parents=True, exist_ok=True)
    data.write_contact_sheet(ROOT / 'data' / 'micro_batch_demo', folder / 'data.png')
    shown = [Picture('Data', folder / 'data.png', 'Scenes with labels, and clips.'), *pictures(runs, folder)]
    page = write_report(records, folder, shown, about(args.workers), console)
    if args.full:
        for document, blocks in ((ROOT / 'README.md', 1), (ROOT / 'docs/results.md', None), (HERE / 'README.md', None)):
            update_table(document, folder / 'results.csv', blocks=blocks)
    console.print(f'{(time.time() - started) / 60:.1f} minutes; report: {page}')
    return 1 if any(result.reason for result in records) else 0


def about(workers: int) -> list[str]:
    """Return the paragraphs for the top of the report: the runs and the machine."""
    machine = f'{platform.machine()}, {os.cpu_count()} cores, {workers} runs at a time with one thread each'
    return [
        'Small DeepLabV3 and R3D models train on the same number of samples with four kinds of normalisation: at one '
        'sample per optimizer step, and at a batch of 16, either real or accumulated from 16 forward passes of one '
        'sample.',
        f'{machine}; Python {platform.python_version()}, torch {version("torch")}. Memory is the peak resident memory '
        'of the training process, libraries included.',
    ]


if __name__ == '__main__':
    sys.exit(main())
