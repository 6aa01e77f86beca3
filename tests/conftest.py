"""What every test needs."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _own_default_scope() -> Iterator[None]:
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
