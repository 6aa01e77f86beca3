"""Data for the runs of the tools."""

from io import StringIO

import pytest
from rich.console import Console

from projects.micro_batch_demo import data
from projects.micro_batch_demo.run import CLIPS, SCENES


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
    """The demo's data sets with 12 training and 5 validation samples: an odd number, which two devices cannot share."""
    root = tmp_path_factory.mktemp('data')
    counts = dict(n_train=12, n_val=5, console=Console(file=StringIO()))
    data.build_segmentation(root, **(SCENES | counts))
    data.build_video(root, **(CLIPS | counts))
    return root
