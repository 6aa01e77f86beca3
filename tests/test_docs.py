"""What the documents say exists: links, files, names, make targets and options; their code runs; the site is strict."""

import ast
import csv
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from mmengine.config import Config
from mmengine.registry import DefaultScope

from wsbcn_mm.engine import hooks
from wsbcn_mm.surgery.kinds import count_convs, count_norms

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    chain(
        ROOT.glob('*.md'),
        ROOT.glob('docs/**/*.md'),
        ROOT.glob('configs/**/README.md'),
        ROOT.glob('projects/**/README.md'),
    )
)
TREES = ('.ci', 'configs', 'docs', 'projects', 'tests', 'tools', 'wsbcn_mm')
WRITTEN_BY_A_COMMAND = 'projects/micro_batch_demo/results'
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)
MARKERS = ('<!-- demo-table:start -->', '<!-- demo-table:end -->')
RESULTS = [ROOT / 'README.md', ROOT / 'docs' / 'results.md', ROOT / 'projects' / 'micro_batch_demo' / 'README.md']


def name_of(value: object) -> str | None:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else None


def prose(document: Path) -> str:
    """The text without fenced blocks."""
    return FENCED.sub('', document.read_text())


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """'file:number of the block' and text of every fenced block in one of the languages."""
    for document in DOCUMENTS:
        for number, (language, code) in enumerate(FENCED.findall(document.read_text())):
            if language in languages:
                yield f'{name_of(document)}:{number}', code


def headings(document: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r'^#+ +(.+)$', prose(document), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def expand_braces(path: str) -> list[str]:
    """'a/{b,c}/d' -> ['a/b/d', 'a/c/d']."""
    found = re.search(r'{([^{}]*)}', path)
    if not found:
        return [path]
    variants = (path[: found.start()] + word + path[found.end() :] for word in found[1].split(','))
    return [expanded for variant in variants for expanded in expand_braces(variant)]


def mentioned_paths(document: Path) -> Iterator[tuple[str, str | None]]:
    """(path, name in that file or None) of everything in backticks that looks like a path of this repository."""
    for text in re.findall(r'`([^`\n]+)`', prose(document)):
        path, _, name = text.partition('::')
        if path.split('/')[0] in TREES and '/' in path and not re.search(r'[\s<>]', path):
            yield path, name or None


def defined_names(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def is_config(code: str) -> bool:
    return 'default_scope' in code and 'model = dict(' in code


PYTHON = dict(blocks('python'))
SHELL = dict(blocks('bash'))
EXAMPLES = {name: code for name, code in PYTHON.items() if not is_config(code)}
CONFIGS = {name: code for name, code in PYTHON.items() if is_config(code)}


def test_the_documents_and_their_examples_are_found():
    assert {'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'docs/newcomer.md'} <= set(map(name_of, DOCUMENTS))
    assert len(EXAMPLES) >= 6
    assert len(CONFIGS) >= 1
    assert expand_braces('a/{b,c}/d{,e}') == ['a/b/d', 'a/b/de', 'a/c/d', 'a/c/de']


@pytest.mark.parametrize('document', DOCUMENTS, ids=name_of)
def test_links_between_documents_resolve(document):
    broken = []
    for target in re.findall(r'\[[^\]\n]*\]\(([^)\s]+)\)', prose(document)):
        if target.startswith(('http://', 'https://')):
            continue
        path, _, anchor = target.partition('#')
        file = (document.parent / path).resolve() if path else document
        if file.is_relative_to(ROOT / WRITTEN_BY_A_COMMAND):
            continue
        if not file.exists() or (anchor and anchor not in headings(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize('document', DOCUMENTS, ids=name_of)
def test_mentioned_files_and_names_exist(document):
    missing = []
    for mentioned, name in mentioned_paths(document):
        for path in expand_braces(mentioned):
            found = [ROOT / path] if (ROOT / path).exists() else list(ROOT.glob(path))
            if not found and not path.startswith(WRITTEN_BY_A_COMMAND):
                missing.append(path)
            elif name and name not in defined_names(found[0]):
                missing.append(f'{path}::{name}')
    assert not missing


@pytest.mark.parametrize('name', EXAMPLES)
def test_python_examples_run(name):
    torch.manual_seed(0)
    exec(compile(EXAMPLES[name], name, 'exec'), {'__name__': '__main__'})


@pytest.mark.parametrize('name', CONFIGS)
def test_config_examples_build_with_ws_and_bcn(name, tmp_path):
    file = tmp_path / 'example.py'
    file.write_text(CONFIGS[name])
    cfg = Config.fromfile(str(file))
    from mmseg.registry import HOOKS, MODELS

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        for hook in cfg.default_hooks.values():
            assert HOOKS.build(hook)
    # ResNet-50's 53 convolutions and V3+'s 14, each with a norm; the classifier is plain.
    assert count_convs(model) == {'WS': 53 + 14, 'plain': 1}
    assert count_norms(model) == {'BCN': 53 + 14}


def test_make_targets_exist():
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    texts = [*(re.findall(r'`make ([\w-]+)', document.read_text()) for document in DOCUMENTS)]
    texts += [re.findall(r'^make ([\w-]+)', code, re.MULTILINE) for code in SHELL.values()]
    named = set(chain.from_iterable(texts))
    assert {'demo', 'test'} <= named
    assert named <= targets


def test_commands_name_existing_files_and_options():
    unknown = []
    for name, code in SHELL.items():
        for command in code.replace('\\\n', ' ').splitlines():
            paths = re.findall(r'\b(?:tools|configs|tests|projects)/[\w./-]*\w', command)
            unknown += [f'{name}: {path}' for path in paths if not (ROOT / path).exists()]
            tools = re.findall(r'\btools/(?:dist_|slurm_)?(\w+)\.(?:py|sh)\b', command)
            options = set(chain.from_iterable(map(tool_options, tools)))
            # What comes before a tool is of torchrun or srun.
            given = re.findall(r' (--[\w-]+)', command[command.find('tools/') :])
            unknown += [f'{name}: {option}' for option in given if tools and option not in options]
    assert not unknown


def test_options_in_the_prose_exist():
    files = [path.relative_to(ROOT / 'tools').with_suffix('') for path in (ROOT / 'tools').rglob('*.py')]
    known = set(chain.from_iterable(map(tool_options, map(str, files))))
    named = chain.from_iterable(re.findall(r'`(--[\w-]+)', prose(document)) for document in DOCUMENTS)
    assert set(named) <= known


def tool_options(tool: str) -> set[str]:
    """Options of tools/<tool>.py, from its parser's definition."""
    return set(re.findall(r"'(--[\w-]+)'", (ROOT / 'tools' / f'{tool}.py').read_text()))


@pytest.mark.parametrize('document', RESULTS, ids=name_of)
def test_result_tables_have_their_markers(document):
    text = document.read_text()
    assert [text.count(marker) for marker in MARKERS] == [1, 1]
    assert text.index(MARKERS[0]) < text.index(MARKERS[1])


@pytest.mark.parametrize('document', RESULTS, ids=name_of)
def test_result_tables_are_those_of_the_results(document):
    """The README has those of one sample per step."""
    from projects.micro_batch_demo import records, report

    blocks = 1 if document == ROOT / 'README.md' else None
    table = report.markdown_table(records.load_csv(ROOT / WRITTEN_BY_A_COMMAND / 'results.csv'), blocks=blocks)
    shown = document.read_text().split(MARKERS[0])[1].split(MARKERS[1])[0]
    assert [line for line in shown.splitlines() if line.startswith('|')] == [
        line for line in table.splitlines() if line.startswith('|')
    ]


def test_markers_are_those_that_the_report_writes():
    from projects.micro_batch_demo import report

    assert tuple(f'<!-- {report.TABLE}:{side} -->' for side in ('start', 'end')) == MARKERS


@pytest.mark.parametrize(
    ('section', 'side', 'layouts', 'documents'),
    [
        ('norm_relu', 'bcn', ('contiguous', 'channels_last'), ('README.md', 'docs/limits.md')),
        ('norm_relu', 'bcn', ('contiguous',), ('docs/benchmarks.md',)),
        ('norm_relu', 'bcn', ('channels_last',), ('docs/benchmarks.md',)),
        ('step', 'bcn-ws', ('contiguous',), ('docs/benchmarks.md',)),
        ('step_memory', 'bcn-ws', ('contiguous',), ('docs/benchmarks.md',)),
        ('step', 'bcn-ws-save-conv', ('contiguous',), ('docs/benchmarks.md', 'docs/memory.md')),
        ('step_memory', 'bcn-ws-save-conv', ('contiguous',), ('docs/benchmarks.md', 'docs/memory.md')),
    ],
)
def test_ranges_of_speed_and_memory_are_those_measured(section, side, layouts, documents):
    with (ROOT / 'projects' / 'operator_benchmark' / 'results' / 'cpu' / 'measurements.csv').open() as file:
        rows = [row for row in csv.DictReader(file) if (row['section'], row['side']) == (section, side)]
    ratios = [float(row['ratio']) for row in rows if row['layout'] in layouts]
    measured = f'{min(ratios):.2f} to {max(ratios):.2f}'
    for document in documents:
        assert measured in ' '.join((ROOT / document).read_text().split()), document


def test_the_readme_is_read_in_minutes():
    assert len((ROOT / 'README.md').read_text().split()) <= 1400


def test_every_hook_is_documented_under_the_key_that_recipes_give_it():
    text = (ROOT / 'docs' / 'hooks.md').read_text()
    names = {*hooks.__all__, 'ClipStripHook', 'NormCheckHook', 'OverlayHook', 'SafeCheckpointHook'}
    assert {name for name in names if f'`{name}`' not in text} == set()
    runtime = Config.fromfile(ROOT / 'configs' / '_base_' / 'default_runtime.py')
    rows = {(key, hook['type']) for key, hook in runtime.default_hooks.items()}
    assert rows <= set(re.findall(r'^\| `(\w+)` \| `(\w+)` \|', text, re.MULTILINE))


def test_every_room_of_the_library_has_a_page_of_its_api():
    text = '\n'.join(page.read_text() for page in (ROOT / 'docs' / 'api').rglob('*.md'))
    shown = set(re.findall(r'^::: ([\w.]+)$', text, re.MULTILINE))
    packages = [file.parent for depth in ('*', '*/*') for file in (ROOT / 'wsbcn_mm').glob(f'{depth}/__init__.py')]
    # A floor with rooms is shown room by room, ops function by function.
    rooms = [package for package in packages if package not in {other.parent for other in packages}]
    wanted = {'.'.join(room.relative_to(ROOT).parts) for room in rooms if 'ops' not in room.parts}
    assert len(wanted) >= 20
    assert wanted - shown == set()


def build_site(tmp_path: Path, text: str) -> None:
    """Build a site of one page with the settings of this one, but for its pages."""
    pages = tmp_path / 'docs'
    pages.mkdir()
    (pages / 'index.md').write_text(text)
    (pages / 'other.md').write_text('# Other\n\n## A heading\n')
    nav = ['index.md', 'other.md']
    build(load_config(str(ROOT / 'mkdocs.yml'), docs_dir=str(pages), site_dir=str(tmp_path / 'site'), nav=nav))


def test_the_site_is_built_of_links_and_references_that_exist(tmp_path):
    build_site(tmp_path, '# Page\n\n[a](other.md#a-heading) [b][wsbcn_mm.engine.files]\n\n::: wsbcn_mm.engine.files\n')
    assert 'AtomicBackend' in (tmp_path / 'site' / 'index.html').read_text()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('[dead](nowhere.md)', "a link 'nowhere.md', but the target is not found"),
        ('[dead](other.md#no-heading)', "does not contain an anchor '#no-heading'"),
        ('[outside](../configs/nowhere.md)', "a link '../configs/nowhere.md', but the target is not found"),
        ('[no reference][wsbcn_mm.nowhere]', "Could not find cross-reference target 'wsbcn_mm.nowhere'"),
        ('::: wsbcn_mm.nowhere', 'wsbcn_mm.nowhere could not be found'),
    ],
)
def test_a_dead_link_or_a_missing_reference_fails_the_site(tmp_path, caplog, text, message):
    with pytest.raises(Abort):
        build_site(tmp_path, f'# Page\n\n{text}\n')
    assert message in caplog.text


def test_links_that_leave_the_docs_become_paths_on_the_site(tmp_path):
    link = os.path.relpath(ROOT / 'configs', tmp_path / 'docs')
    build_site(tmp_path, f'# Page\n\n[recipes]({link}/_base_/default_runtime.py)\n')
    assert 'recipes (<code>configs/_base_/default_runtime.py</code>)' in (tmp_path / 'site/index.html').read_text()


def test_every_pretrained_file_of_the_recipes_is_documented():
    text = (ROOT / 'docs' / 'pretrained.md').read_text()
    recipes = (file.read_text() for file in ROOT.glob('configs/*/*.py'))
    files = set(chain.from_iterable(re.findall(r"'(pretrained/[^']+)'", recipe) for recipe in recipes))
    assert files
    assert {file for file in files if f'`{file}`' not in text} == set()


def test_every_data_folder_of_the_recipes_is_documented():
    text = (ROOT / 'docs' / 'data.md').read_text()
    for file in ROOT.glob('configs/_base_/datasets/*.py'):
        for folder in re.findall(r"^data_root = '([^']+)'", file.read_text(), re.MULTILINE):
            assert f'{folder.rstrip("/")}/' in text, f'{file.name}: {folder}'


def test_the_rates_in_the_bcn_card_are_those_that_the_search_wrote():
    card = (ROOT / 'docs' / 'method_cards' / 'batch_channel_norm.md').read_text()
    with (ROOT / 'projects' / 'micro_batch_demo' / 'results' / 'tuning.csv').open() as file:
        trials = [row for row in csv.DictReader(file) if row['setting'] == '1xb1-acc1' and row['norm'] == 'bcn-ws']
    header, _, *rows = re.search(r'\| rate \|.*?\n\n', card, re.DOTALL).group().strip().splitlines()
    rates = [float(cell.split()[0]) for cell in header.strip('|').split('|')[1:]]
    checked = 0
    for row in rows:
        name, *cells = (cell.strip() for cell in row.strip('|').split('|'))
        task, lr = name.split(',')[0], float(name.split()[-1])
        for rate, cell in zip(rates, cells, strict=True):
            (trial,) = [
                t for t in trials if (t['task'], float(t['lr']), float(t['rate'])) == (task, lr, rate)
                and (t['warmup'], t['decay']) == ('True', 'False')
            ]  # fmt: skip
            assert float(cell.split()[0]) == round(float(trial['metric']), 1)
            checked += 1
    assert checked == 8
