"""The argument of torchrun's predecessor is accepted in both of its spellings."""

import runpy
import sys

import pytest

from tests.tools.tiny_runs import ROOT


@pytest.mark.parametrize('argument', ['--local-rank=3', '--local_rank=3'])
@pytest.mark.parametrize(('tool', 'files'), [('train.py', ['a.py']), ('test.py', ['a.py', 'b.pth'])])
def test_both_spellings(tool, files, argument, monkeypatch):
    parse_args = runpy.run_path(str(ROOT / 'tools' / tool))['parse_args']
    monkeypatch.setattr(sys, 'argv', [tool, argument, *files])
    assert parse_args().local_rank == 3
