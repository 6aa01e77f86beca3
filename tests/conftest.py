"""What every test needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def _default_scope_restored() -> Iterator[None]:
    """Restore mmengine's default scope, which a Runner sets for the whole process and leaves behind."""
    scopes = sys.modules.get('mmengine.registry.default_scope')
    before = scopes.DefaultScope._instance_dict.copy() if scopes else None
    yield
    scopes = sys.modules.get('mmengine.registry.default_scope')
    if scopes:
        if before is None:
            scopes.DefaultScope._instance_dict.clear()
        else:
            scopes.DefaultScope._instance_dict = before


@pytest.fixture(autouse=True, scope='module')
def _own_default_scope_for_modules() -> Iterator[None]:
    """For the Runners in fixtures that a module's tests share."""
    with _default_scope_restored():
        yield


@pytest.fixture(autouse=True)
def _own_default_scope_for_tests() -> Iterator[None]:
    with _default_scope_restored():
        yield
