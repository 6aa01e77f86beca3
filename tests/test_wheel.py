"""What a wheel of this package has beside its modules: C source, recipes, tools and tested versions."""

from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import apply_configuration
from setuptools.dist import Distribution

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'wsbcn_mm'
NEED_A_CLONE = {'tools/set_up.py'}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Paths below `wsbcn_mm/` of all files that setuptools would put into a wheel."""
    library = tmp_path_factory.mktemp('library')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        distribution = apply_configuration(Distribution({'script_name': 'setup.py'}), 'pyproject.toml')
        command = distribution.get_command_obj('build_py')
        command.build_lib = str(library)
        command.ensure_finalized()
        files = command.get_outputs(include_bytecode=False)
    return {Path(file).relative_to(library / 'wsbcn_mm').as_posix() for file in files}


def test_the_package_is_whole(wheel):
    assert {'py.typed', 'ops/bcn/c.c', 'engine/environment.py', 'video/decoding/child/__main__.py'} <= wheel
    modules = {file.relative_to(PACKAGE).as_posix() for file in PACKAGE.rglob('*.py') if '.mim' not in file.parts}
    assert modules <= wheel


def test_recipes_and_tools_come_along(wheel):
    expected = {file.relative_to(ROOT).as_posix() for folder in ('configs', 'tools') for file in recipe_files(folder)}
    assert len(expected) > 130
    packed = {file.removeprefix('.mim/') for file in wheel if file.startswith('.mim/')}
    assert packed == expected - NEED_A_CLONE | {'constraints.txt'}


def recipe_files(folder):
    return [file for file in (ROOT / folder).rglob('*') if file.suffix in ('.py', '.sh')]
