"""Imports point down only, in no circle: tools -> inference -> segmentation | video -> engine -> torch-only floors."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = 'wsbcn_mm'

# From the ground up; a floor may import from itself and from lower ones. Files directly in the package may import all.
FLOORS = [
    *({name} for name in ('ops', 'layers', 'diagnostics', 'surgery', 'microbatch', 'engine')),
    {'segmentation', 'video'},
    {'inference'},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
TORCH_ONLY = {'ops', 'layers', 'diagnostics', 'surgery', 'microbatch'}
TORCH_AND_ITS_COMPANY = {'torch', 'triton', 'numpy', *sys.stdlib_module_names}
ABOVE = {'tools', 'configs', 'projects', 'tests'}


def imported_modules(file: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a file imports, anywhere in it; `a.b.c` for `from a.b import c`."""
    package = file.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split('.') if node.module else []
            for alias in node.names:
                yield node.lineno, '.'.join([*base, alias.name])


def floor_of(file: Path, root: Path) -> str | None:
    parts = file.relative_to(root / PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def may_import(floor: str, other: str) -> bool:
    return floor == other or (floor in LEVEL and LEVEL.get(other, len(FLOORS)) < LEVEL[floor])


def forbidden_arrows(root: Path) -> list[str]:
    """Every import in the library under `root` that points up or sideways, as 'file:line imports name'."""
    found = []
    for file in sorted((root / PACKAGE).rglob('*.py')):
        floor = floor_of(file, root)
        for line, name in imported_modules(file, root):
            top, *rest = name.split('.')
            if top in ABOVE:
                wrong = True
            elif top == PACKAGE and floor is not None:
                # `from wsbcn_mm import x` reaches the package's own __init__, which is above all floors.
                wrong = not rest or not may_import(floor, rest[0])
            else:
                wrong = floor in TORCH_ONLY and top not in TORCH_AND_ITS_COMPANY
            if wrong:
                found.append(f'{file.relative_to(root)}:{line} imports {name}')
    return found


def arrows_between(folder: Path, root: Path) -> dict[str, set[str]]:
    """Which of the modules and rooms directly in a folder import which others of them; `__init__` is left out."""
    inside = {p.stem: [p] for p in folder.glob('*.py') if p.name != '__init__.py'}
    inside |= {p.name: sorted(p.rglob('*.py')) for p in folder.iterdir() if p.is_dir()}
    package = [*folder.relative_to(root).parts]
    arrows: dict[str, set[str]] = {}
    for name, files in inside.items():
        imported = (other.split('.') for file in files for _, other in imported_modules(file, root))
        arrows[name] = {parts[len(package)] for parts in imported if parts[: len(package)] == package} & {*inside} - {
            name
        }
    return arrows


def circles(root: Path) -> list[str]:
    """A circle of imports among neighbours, for each folder of the library that has one, as 'folder: a, b, a'."""
    found = []
    for folder in [root / PACKAGE, *sorted(p for p in (root / PACKAGE).rglob('*') if p.is_dir())]:
        try:
            TopologicalSorter(arrows_between(folder, root)).prepare()
        except CycleError as error:
            found.append(f'{folder.relative_to(root)}: {", ".join(error.args[1])}')
    return found


def test_arrows_point_down():
    assert forbidden_arrows(ROOT) == []


def test_there_are_no_circles():
    assert circles(ROOT) == []


def test_a_floor_is_seen_at_a_glance():
    for folder in [ROOT / 'tools', *(p for p in (ROOT / PACKAGE).rglob('*') if (p / '__init__.py').is_file())]:
        entries = [p.name for p in folder.iterdir() if p.name not in ('__pycache__', '__init__.py')]
        assert len(entries) <= 20, f'{folder.relative_to(ROOT)} has {len(entries)} entries'


def test_both_tasks_have_the_same_rooms():
    rooms = {
        task: {p.name for p in (ROOT / PACKAGE / task).iterdir() if p.is_dir()} for task in ('segmentation', 'video')
    }
    assert rooms['video'] - {'__pycache__', 'decoding'} == rooms['segmentation'] - {'__pycache__'}


def test_every_floor_is_known():
    floors = {p.name for p in (ROOT / PACKAGE).iterdir() if (p / '__init__.py').is_file()}
    assert floors <= set(LEVEL)
    assert {'ops', 'layers', 'engine'} <= floors


def test_the_torch_only_floors_work_without_openmmlab():
    floors = [f for f in sorted(TORCH_ONLY) if (ROOT / PACKAGE / f / '__init__.py').is_file()]
    program = f"""
import importlib, sys
sys.modules.update(dict.fromkeys(['mmengine', 'mmcv', 'mmseg', 'torchvision', 'decord']))
for floor in {floors}:
    importlib.import_module('{PACKAGE}.' + floor)
import torch
from {PACKAGE}.layers import BatchChannelNorm, WSConv2d
out = BatchChannelNorm(8, 4)(WSConv2d(3, 8, 3)(torch.randn(1, 3, 4, 4)))
assert out.shape == (1, 8, 2, 2)
assert '{PACKAGE}.engine' not in sys.modules
"""
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_recipes_hold_no_classes():
    for file in (ROOT / 'configs').rglob('*.py'):
        text = file.read_text(encoding='utf-8').replace('{{', '"').replace('}}', '"')
        kinds = {type(node) for node in ast.walk(ast.parse(text))}
        assert not kinds & {ast.ClassDef, ast.FunctionDef}, file


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ('path', 'text', 'name'),
    [
        ('wsbcn_mm/ops/a.py', 'import mmengine', 'mmengine'),
        ('wsbcn_mm/ops/a.py', 'import mmcv.cnn as c', 'mmcv.cnn'),
        ('wsbcn_mm/surgery/a.py', 'from torchvision.ops import x', 'torchvision.ops.x'),
        ('wsbcn_mm/ops/a.py', 'from ..layers import BatchChannelNorm', 'wsbcn_mm.layers.BatchChannelNorm'),
        ('wsbcn_mm/layers/a.py', 'def f():\n    from mmengine.registry import MODELS', 'mmengine.registry.MODELS'),
        ('wsbcn_mm/layers/a.py', 'from .. import engine', 'wsbcn_mm.engine'),
        ('wsbcn_mm/layers/sub/a.py', 'from ...engine.registration import x', 'wsbcn_mm.engine.registration.x'),
        ('wsbcn_mm/surgery/a.py', 'import wsbcn_mm', 'wsbcn_mm'),
        ('wsbcn_mm/diagnostics/a.py', 'from ..surgery import fold', 'wsbcn_mm.surgery.fold'),
        ('wsbcn_mm/engine/a.py', 'from wsbcn_mm.video import resnet3d', 'wsbcn_mm.video.resnet3d'),
        ('wsbcn_mm/segmentation/a.py', 'from ..video.norms import x', 'wsbcn_mm.video.norms.x'),
        ('wsbcn_mm/video/__init__.py', 'from .. import segmentation', 'wsbcn_mm.segmentation'),
        ('wsbcn_mm/video/a.py', 'from ..inference.load import load', 'wsbcn_mm.inference.load.load'),
        ('wsbcn_mm/engine/a.py', 'from tools.train import main', 'tools.train.main'),
        ('wsbcn_mm/a.py', 'import projects.micro_batch_demo', 'projects.micro_batch_demo'),
        ('wsbcn_mm/unheard_of/a.py', 'from ..ops import x', 'wsbcn_mm.ops.x'),
    ],
)
def test_a_forbidden_arrow_is_caught(tmp_path, path, text, name):
    write(tmp_path, 'wsbcn_mm/ops/fine.py', 'import torch\nfrom .other import x\n')
    write(tmp_path, path, text)
    line = len(text.splitlines())
    assert forbidden_arrows(tmp_path) == [f'{path}:{line} imports {name}']


@pytest.mark.parametrize(
    ('path', 'text'),
    [
        ('wsbcn_mm/layers/a.py', 'import torch\nfrom ..ops import x\nfrom . import y\nfrom .b import z'),
        ('wsbcn_mm/engine/a.py', 'from mmengine import MODELS\nfrom .. import layers'),
        ('wsbcn_mm/segmentation/heads/a.py', 'import mmseg\nfrom ...engine import x\nfrom ..metric import y'),
        ('wsbcn_mm/__init__.py', 'from .engine.registration import register_layers'),
        ('wsbcn_mm/microbatch/a.py', 'from wsbcn_mm.layers import BatchChannelNorm'),
    ],
)
def test_an_allowed_arrow_passes(tmp_path, path, text):
    write(tmp_path, path, text)
    assert forbidden_arrows(tmp_path) == []


@pytest.mark.parametrize(
    ('files', 'circle'),
    [
        ({'ops/a.py': 'from .b import x', 'ops/b.py': 'from . import a'}, 'wsbcn_mm/ops: a, b, a'),
        (
            {
                'engine/data/a.py': 'from ..memory.b import x',
                'engine/memory/c.py': 'def f():\n    from ..data import a',
            },
            'wsbcn_mm/engine: data, memory, data',
        ),
        (
            {'video/data/a.py': 'from ..models import x', 'video/models/__init__.py': 'from ..data.b import y'},
            'wsbcn_mm/video: data, models, data',
        ),
        (
            {'engine/run.py': 'import wsbcn_mm.engine.recipe.load', 'engine/recipe/load.py': 'from ..run import x'},
            'wsbcn_mm/engine: recipe, run, recipe',
        ),
    ],
)
def test_a_circle_is_caught(tmp_path, files, circle):
    for path, text in files.items():
        write(tmp_path, f'wsbcn_mm/{path}', text)
    write(tmp_path, 'wsbcn_mm/layers/__init__.py', 'from .a import x')
    write(tmp_path, 'wsbcn_mm/layers/a.py', 'from ..ops import y')
    (found,) = circles(tmp_path)
    room, around = found.split(': ')
    names = around.split(', ')
    assert room == circle.split(': ')[0]
    assert {*names} == {*circle.split(': ')[1].split(', ')}
    assert names[0] == names[-1]
