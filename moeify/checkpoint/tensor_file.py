"""A safetensors file of tensors that are in memory, by safetensors' own writer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_CODE = re.compile(r"os error (\d+)")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write ``tensors``; where the disk fails it is an ``OSError``, of which the writer gives the text alone."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        if (code := _CODE.search(str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
