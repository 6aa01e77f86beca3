"""Publish a trained model: weights without code or optimizer, the config, and a card with metrics and origin."""

import json
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..files import sha256
from .class_guard import class_list_in
from .reading import read_checkpoint
from .writing import refuse_existing, write_checkpoint

OF_THE_RUN = ('experiment_name', 'load_from', 'launcher', 'resume', 'work_dir')
"""Keys of a resolved config that describe one particular run."""


def publish(checkpoint: str | Path, metrics: str | Path, out: str | Path) -> list[Path]:
    """Write OUT.safetensors (weights), OUT.py (training config) and OUT.json (model card) from a checkpoint.

    `tools/test.py OUT.py OUT.safetensors` evaluates them. The JSON has the class list, its hash, the norm recipe (the
    fingerprint of every layer), the metrics, iteration and seed, and the SHA-256 of the weights.

    Args:
        checkpoint: Checkpoint of a training run.
        metrics: The metrics.json that tools/test.py wrote for this checkpoint.
        out: Path of the files, with or without `.safetensors`.

    Returns:
        Paths of the three files.

    Raises:
        FileExistsError: If one of the files already exists.
        FileNotFoundError: If the checkpoint or the metrics do not exist.
        ImportError: Without the package safetensors.
        ValueError: If the checkpoint lacks its config, classes or fingerprint, or `metrics` does not map names to
            numbers.
    """
    out = Path(str(out).removesuffix('.safetensors'))
    weights, recipe, card = (out.parent / f'{out.name}{suffix}' for suffix in ('.safetensors', '.py', '.json'))
    for path in (weights, recipe, card):
        refuse_existing(path)
    measured = read_metrics(metrics)
    state, meta, _ = read_checkpoint(checkpoint)
    missing = [name for name in ('cfg', 'dataset_meta', 'fingerprint') if name not in meta]
    if missing:
        raise ValueError(
            f'{checkpoint} lacks {", ".join(missing)} in its meta: a checkpoint of a run with SafeCheckpointHook and '
            'CheckpointGuardHook is expected, which the recipes use'
        )
    cfg = Config.fromstring(meta['cfg'], '.py')
    for name in OF_THE_RUN:
        cfg.pop(name, None)
    data = {name: meta['dataset_meta'].get(name) for name in ('classes', 'palette')}
    classes = class_list_in(data)
    classes_sha256 = classes and classes.sha256
    write_checkpoint(
        weights, state, dict(fingerprint=meta['fingerprint'], dataset_meta=data, classes_sha256=classes_sha256)
    )
    cfg.dump(recipe)
    contents: dict[str, Any] = dict(
        weights=weights.name,
        sha256=sha256(weights),
        config=recipe.name,
        classes=data['classes'],
        classes_sha256=classes_sha256,
        metrics=measured,
        iterations=meta.get('iter'),
        seed=meta.get('seed'),
        norm_recipe=meta['fingerprint'],
    )
    card.write_text(json.dumps(contents, indent=2) + '\n')
    return [weights, recipe, card]


def read_metrics(path: str | Path) -> dict[str, float]:
    """Return {name: number} from a metrics.json.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is empty or does not map names to numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'metrics {str(path)!r} do not exist: tools/test.py writes metrics.json')
    try:
        metrics = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is not valid JSON: {error}') from None
    if not isinstance(metrics, dict) or not metrics or not all(isinstance(v, (int, float)) for v in metrics.values()):
        raise ValueError(
            f'{path} contains {str(metrics)[:60]}: names and numbers are expected, as tools/test.py writes them'
        )
    return metrics
