"""What every test needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
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
    if datasets := sys.modules.get('mmengine.dataset.base_dataset'):
        datasets.gc = SimpleNamespace(collect=lambda: 0)  # a full collection for every dataset is a tenth of the tests
    before = {managed: managed._instance_dict.copy() for managed in _managed()}
    yield
    for managed in _managed():
        managed._instance_dict.clear()
        managed._instance_dict.update(before.get(managed, {}))


def _managed() -> list[Any]:
    modules = {sys.modules.get(module): name for module, name in LEFT_BY_A_RUNNER.items()}
    return [getattr(module, name) for module, name in modules.items() if module]


@pytest.fixture(autouse=True, scope='session')
def _every_config_formatted_once() -> Iterator[None]:
    """Keep what yapf made of a config: mmengine formats it for every log and checkpoint, a third of a short run."""
    from yapf.yapflib import yapf_api

    formatted: dict[tuple[str, str], Any] = {}
    format_code = yapf_api.FormatCode

    def format_once(text: str, **settings: Any) -> Any:
        key = text, repr(settings)
        if key not in formatted:
            formatted[key] = format_code(text, **settings)
        return formatted[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yapf_api, 'FormatCode', format_once)
        yield


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
