"""A trained run that the tests of this folder resume from."""

import pytest

from tests.engine.resume.counted_runs import run


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run of six iterations of two samples, an optimizer step after every second, with all its checkpoints."""
    return run(tmp_path_factory.mktemp('trained') / 'whole', iters=6, accumulation=2, interval=1)
