"""The demo's search for learning rates and BCN's rate: tiny recipes in a plain loop, samples in memory.

    python -m projects.micro_batch_demo.tune --task video --norm gn-ws bcn-ws --setting 1xb1-acc1 --lr 0.02 0.05 0.1
    python -m projects.micro_batch_demo.tune --task video --norm bcn-ws --setting 1xb1-acc1 --lr 0.05 --rate 0 0.01 0.3

Every trial appends a line to results/tuning.csv. A trial that has a line is skipped. Model, optimizer, schedule and
metric are built from the recipe, so a trial is what `tools/train.py` does, without checkpoints and logs.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import set_random_seed
from rich.console import Console
from rich.progress import track
from torch import nn

from projects.common.tiny_recipes import MODELS as MODEL_NAMES
from projects.common.tiny_recipes import find_recipe
from projects.micro_batch_demo.run import HERE, METRICS, NORMS, ROOT, SETTINGS, build_data
from wsbcn_mm.layers import BatchChannelNorm
from wsbcn_mm.microbatch import StepStatistics

TRIAL = ('task', 'norm', 'setting', 'lr', 'rate', 'warmup', 'decay', 'seed')
"""What defines a trial. The three of BCN's estimates are empty for other norms."""
COLUMNS = (*TRIAL, 'metric', 'last_loss', 'seconds')


def samples_in_memory(dataset: Any, what: str) -> list[dict]:
    """Return all samples of a dataset, decoded once."""
    return [dataset[index] for index in track(range(len(dataset)), description=f'reading {what}')]


def trial_recipe(task: str, norm: str, setting: str, lr: float, **estimates: Any) -> Config:
    """Return the tiny recipe with a learning rate and, if given, a `rate` or `warmup` of BCN's estimates."""
    cfg = Config.fromfile(find_recipe(task, norm, setting))
    cfg.optim_wrapper.optimizer.lr = lr
    for part in cfg.model.values():
        if isinstance(part, dict) and part.get('norm_cfg', {}).get('type') == 'BCN':
            part.norm_cfg.update({name: value for name, value in estimates.items() if value is not None})
    return cfg


def train(cfg: Config, samples: Sequence[dict], seed: int, decay: bool = False) -> tuple[nn.Module, float]:
    """Return the trained model and the mean loss of the last tenth of the iterations.

    With `decay`, BCN's rate falls with the learning rate.
    """
    set_random_seed(seed)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    schedulers = [PARAM_SCHEDULERS.build(dict(scheduler, optimizer=optimizer)) for scheduler in cfg.param_scheduler]
    iterations, batch = cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size
    optimizer.initialize_count_status(model, 0, iterations)
    estimates = [(norm, norm.rate) for norm in model.modules() if isinstance(norm, BatchChannelNorm)]
    statistics = StepStatistics(model)
    losses = []
    for batch_indices in batches(len(samples), batch, iterations, seed):
        if decay:
            share = optimizer.param_groups[0]['lr'] / cfg.optim_wrapper.optimizer.lr
            for norm, rate in estimates:
                norm.rate = rate * min(share, 1.0)
        losses.append(train_step(model, optimizer, pseudo_collate([samples[index] for index in batch_indices])))
        if optimizer.should_update():
            statistics.commit()
        for scheduler in schedulers:
            scheduler.step()
    last = losses[-max(1, iterations // 10) :]
    return model, sum(last) / len(last)


def batches(length: int, batch: int, iterations: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of `iterations` batches, one permutation of the data after the other."""
    generator = torch.Generator().manual_seed(seed)
    endless = itertools.chain.from_iterable(
        torch.randperm(length, generator=generator).tolist() for _ in itertools.count()
    )
    for _ in range(iterations):
        yield list(itertools.islice(endless, batch))


def train_step(model: nn.Module, optimizer: OptimWrapper, batch: dict) -> float:
    """Run one forward and backward pass and return the loss."""
    losses = model(**model.data_preprocessor(batch, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    optimizer.update_params(loss)
    return float(loss.detach())


@torch.no_grad()
def evaluate(model: nn.Module, cfg: Config, samples: Sequence[dict], metainfo: dict, key: str) -> float:
    """Return the recipe's metric on `samples`, in percent."""
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = metainfo
    model.eval()
    for sample in samples:
        batch = pseudo_collate([sample])
        evaluator.process(data_samples=model.val_step(batch), data_batch=batch)
    return float(evaluator.evaluate(len(samples))[key])


def known_trials(path: Path) -> set[tuple[str, ...]]:
    """Return the trials of a CSV file, each as the values of `TRIAL`."""
    if not path.is_file():
        return set()
    with path.open(newline='') as file:
        return {tuple(row[name] for name in TRIAL) for row in csv.DictReader(file)}


def append(path: Path, row: dict[str, Any]) -> None:
    """Append a line to a CSV file, and write the header first if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        if new:
            writer.writeheader()
        writer.writerow(row)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=MODEL_NAMES, required=True)
    parser.add_argument('--norm', choices=NORMS, nargs='+', default=NORMS)
    parser.add_argument('--setting', choices=SETTINGS, nargs='+', default=SETTINGS[:1])
    parser.add_argument('--lr', type=float, nargs='+', required=True)
    parser.add_argument('--rate', type=float, nargs='+', default=[None], help="BCN's rate; default: the recipe's")
    parser.add_argument('--warmup', type=int, choices=[0, 1], help="BCN's warm-up; default: the recipe's")
    parser.add_argument('--decay', action='store_true', help="BCN's rate falls with the learning rate")
    parser.add_argument('--seed', type=int, nargs='+', default=[0])
    parser.add_argument('--out', type=Path, default=HERE / 'results' / 'tuning.csv')
    args = parser.parse_args(arguments)
    console = Console()
    build_data(ROOT / 'data' / 'micro_batch_demo', console)
    name, key = METRICS[args.task]
    data: dict[str, tuple[list[dict], dict]] = {}
    for setting, lr, norm, rate, seed in itertools.product(args.setting, args.lr, args.norm, args.rate, args.seed):
        warmup = None if args.warmup is None else bool(args.warmup)
        cfg = trial_recipe(args.task, norm, setting, lr, rate=rate, warmup=warmup)
        init_default_scope(cfg.default_scope)
        norm_cfg = cfg.model.backbone.norm_cfg
        estimates = dict.fromkeys(('rate', 'warmup', 'decay'), '')
        if norm_cfg.type == 'BCN':
            estimates = dict(rate=norm_cfg.rate, warmup=norm_cfg.warmup, decay=args.decay)
        trial = dict(task=args.task, norm=norm, setting=setting, lr=lr, **estimates, seed=seed)
        if tuple(str(value) for value in trial.values()) in known_trials(args.out):
            continue
        if not data:
            for split in ('train', 'val'):
                dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
                data[split] = samples_in_memory(dataset, split), dataset.metainfo
        started = time.time()
        model, loss = train(cfg, data['train'][0], seed, args.decay)
        seconds = time.time() - started
        metric = evaluate(model, cfg, *data['val'], key)
        result = dict(metric=round(metric, 2), last_loss=round(loss, 4), seconds=round(seconds, 1))
        append(args.out, trial | result)
        console.print(f'{trial}: {name} {metric:.1f}, loss {loss:.3f}, {seconds:.0f} s')


if __name__ == '__main__':
    main()
