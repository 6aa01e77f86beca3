"""Write weights together with their metadata."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_atomically
from .reading import require_safetensors


def write_checkpoint(path: str | Path, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write weights and metadata as .safetensors (metadata as JSON), or as mmengine's .pth for any other suffix.

    Raises:
        FileExistsError: If the file already exists.
        ImportError: For .safetensors without that package.
    """
    refuse_existing(path)
    # Serialise in memory: torch.save would store the file name in the file, and could leave it half-written.
    if Path(path).suffix == '.safetensors':
        require_safetensors()
        from safetensors.torch import save

        # Copy: the format does not support tensors that share memory, such as tied weights.
        own = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
        data = save(own, {key: json.dumps(value) for key, value in meta.items()})
    else:
        buffer = BytesIO()
        torch.save({'meta': meta, 'state_dict': {key: tensor.contiguous() for key, tensor in state.items()}}, buffer)
        data = buffer.getvalue()
    write_atomically(path, data)


def refuse_existing(path: str | Path) -> None:
    """Raise FileExistsError if the file already exists."""
    if Path(path).exists():
        raise FileExistsError(f'{path} already exists and is not overwritten: remove it or choose another name')
