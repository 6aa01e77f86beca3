import pytest
import torch
from torch.utils.checkpoint import checkpoint

from wsbcn_mm.layers.recomputation import first_pass, is_recomputation


@pytest.mark.parametrize('use_reentrant', [True, False])
def test_the_second_forward_is_told_from_the_first(use_reentrant):
    told = []

    def watched(x):
        told.append((is_recomputation(), int(first_pass(x))))
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    checkpoint(watched, x, use_reentrant=use_reentrant).sum().backward()
    watched(x)
    assert told == [(False, 1), (True, 0), (False, 1)]


def test_the_answer_of_compiled_code_is_that_of_its_run():
    torch.compiler.reset()
    compiled = torch.compile(lambda x: x.sin() * first_pass(x), fullgraph=True, backend='aot_eager')
    x = torch.ones(3, requires_grad=True)
    out = checkpoint(compiled, x, use_reentrant=False)
    seen = []
    out.register_hook(lambda _: seen.append(compiled(torch.ones(3)).sum().item()))
    out.sum().backward()
    assert (out > 0).all()
    assert seen == [0.0]


def test_the_operator_keeps_torchs_rules():
    torch.library.opcheck(first_pass, (torch.ones(3),), raise_exception=True)
    torch.library.opcheck(first_pass, (torch.ones(3, requires_grad=True),), raise_exception=True)
