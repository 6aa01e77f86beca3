"""Values are converted to tensors and plain data; others are left out by name."""

from pathlib import Path

import numpy as np
import torch

from wsbcn_mm.engine.checkpoint.plain_state import to_plain


def test_plain_values():
    left_out = []
    value = {
        np.int64(3): np.arange(3), 'words': np.array(['a', 'b']), 'where': Path('here'), 'shape': torch.Size([1, 2]),
        'many': [np.float64(0.1), {1, 2}, None, print], 'kind': torch.float16,
    }  # fmt: skip
    plain = to_plain(value, 'x', left_out)
    assert plain.pop(3).tolist() == [0, 1, 2]
    assert plain == {
        'words': ['a', 'b'], 'where': 'here', 'shape': (1, 2), 'many': [0.1, {1, 2}, None, None], 'kind': torch.float16
    }  # fmt: skip
    assert type(plain['many'][0]) is float
    assert left_out == ['x.many.3 (builtins.builtin_function_or_method)']
