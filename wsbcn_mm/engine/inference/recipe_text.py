"""Read the recipe that a checkpoint stores as text, and the part of a recipe that inference needs."""

import ast
import copy
import math
import re
import sys
from importlib import import_module
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.utils import get_object_from_string
from torch import nn

from ..recipe.tree import dicts_in, drop_pretrained

NAMES = {'inf': math.inf, 'nan': math.nan}
"""Names that the text of a config may contain, beside the constants of Python."""

LABEL_LOADER = re.compile(r'Load\w*(Label|Annotation|Mask)')
"""Types of the pipeline steps that read labels, which inference does not have."""

FOLDED = {'folded_segmentor': 'wsbcn_mm.segmentation.models.folded_segmentor'}
"""Modules that tools/fold.py copies beside its config, and where this package has them."""


def config_of_text(text: str, source: str) -> Config:
    """Return the config that mmengine wrote as text, without executing the text.

    mmengine reads such a text by running it as Python, so a checkpoint could run any code. What mmengine writes is
    `name = value` with literals and `dict(...)` only. This reads that and rejects everything else.

    Raises:
        ValueError: If the text contains anything else.
    """
    values = {}
    try:
        for node in ast.parse(text).body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                raise ValueError(f'line {node.lineno} is not name = value')
            values[node.targets[0].id] = literal(node.value)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f'the recipe in {source} is not plain data ({error}), and code in a checkpoint does not run: '
            'give the recipe with --recipe FILE (recipe= in Python)'
        ) from None
    return Config(values)


def literal(node: ast.expr) -> Any:
    """Return the value of an expression of constants, lists, tuples, dicts and `dict(...)`.

    Raises:
        ValueError: For any other expression.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        value = {}
        for argument in node.args:
            value.update(literal(argument))
        return value | {keyword.arg: literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [literal(element) for element in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {literal(key): literal(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.Name) and node.id in NAMES:
        return NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -literal(node.operand)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f'line {node.lineno} has {ast.unparse(node)[:60]!r}') from None


def import_custom_modules(cfg: Config, source: str) -> None:
    """Import the modules that a recipe names in `custom_imports`.

    Raises:
        ImportError: If a module does not exist here; the message names it and the recipe.
    """
    imports = cfg.get('custom_imports') or {}
    for name in imports.get('imports') or []:
        try:
            import_module(FOLDED.get(name, name))
        except ModuleNotFoundError as error:
            if not imports.get('allow_failed_imports', False):
                raise ImportError(
                    f'{source}: its recipe imports {name!r}, which this Python does not find ({error}): '
                    'put the folder of that module on PYTHONPATH'
                ) from None


def refuse_functions(cfg: Config, source: str) -> None:
    """Refuse a recipe whose `type` is the path of something else than a layer or a transform.

    mmengine calls whatever object a path such as 'os.system' names, with the arguments beside it.

    Raises:
        ValueError: Naming the first such type.
    """
    for node in dicts_in(list(cfg.values())):
        kind = node.get('type')
        if not isinstance(kind, str) or '.' not in kind:
            continue
        known = kind.partition('.')[0] in sys.modules
        found = get_object_from_string(kind) if known else kind
        # None: a name with a scope, which registries know or nobody.
        if found is not None and not (isinstance(found, type) and issubclass(found, (nn.Module, BaseTransform))):
            raise ValueError(
                f'the recipe in {source} has type={kind!r}: the name of a layer or a transform is expected; if you '
                'trust it, give the recipe with --recipe FILE (recipe= in Python)'
            )


def inference_pipeline(cfg: Config) -> list[dict[str, Any]]:
    """Return the steps of a recipe's test pipeline that do not read labels.

    Raises:
        ValueError: If the recipe has neither `test_dataloader` nor `test_pipeline`.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and ('dataset' in dataset or dataset.get('datasets')):
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    steps = dataset.get('pipeline') or cfg.get('test_pipeline')
    if not steps:
        raise ValueError('the recipe has no test pipeline: test_dataloader.dataset.pipeline or test_pipeline is needed')
    return [copy.deepcopy(dict(step)) for step in steps if not LABEL_LOADER.match(step['type'])]


def inference_config(cfg: Config) -> Config:
    """Return the part of a recipe that inference needs: model, test pipeline, scope and imports."""
    kept = {key: copy.deepcopy(cfg[key]) for key in ('default_scope', 'custom_imports', 'test_cfg') if cfg.get(key)}
    kept |= dict(model=copy.deepcopy(cfg.model), test_pipeline=inference_pipeline(cfg))
    for key in ('pretrained', 'train_cfg'):
        kept['model'].pop(key, None)
    reduced = Config(kept)
    drop_pretrained(reduced)
    return reduced
