"""What every test needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

LEFT_BY_A_RUNNER = {
    'mmengine.registry.default_scope': 'DefaultScope',
    'mmengine.logging.message_hub': 'MessageHub',
    'mmengine.logging.logger': 'MMLogger',
}
"""What mmengine keeps for the whole process: where names are looked up, the iteration that runs, the log."""


@contextmanager
def _mmengine_restored() -> Iterator[None]:
    before = {managed: managed._instance_dict.copy() for managed in _managed()}
    yield
    for managed in _managed():
        managed._instance_dict.clear()
        managed._instance_dict.update(before.get(managed, {}))


def _managed() -> list[Any]:
    modules = {sys.modules.get(module): name for module, name in LEFT_BY_A_RUNNER.items()}
    return [getattr(module, name) for module, name in modules.items() if module]


@pytest.fixture(autouse=True, scope='module')
def _own_mmengine_for_modules() -> Iterator[None]:
    """For the Runners in fixtures that a module's tests share."""
    with _mmengine_restored():
        yield


@pytest.fixture(autouse=True)
def _own_mmengine_for_tests() -> Iterator[None]:
    with _mmengine_restored():
        yield


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data sets with 12 training and 5 validation samples: an odd number, which two devices cannot share."""
    from rich.console import Console

    from projects.toy_data import data
    from projects.toy_data.data import CLIPS, SCENES

    root = tmp_path_factory.mktemp('data')
    counts = dict(n_train=12, n_val=5, console=Console(file=StringIO()))
    data.build_segmentation(root, **(SCENES | counts))
    data.build_video(root, **(CLIPS | counts))
    return root
