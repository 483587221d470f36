"""How large the model may be that config.json describes: no larger than the weights beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moeify.checkpoint.reader import Checkpoint
from moeify.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_VALUES_PER_BYTE = 2
"""Weights of four bits are the smallest that are common."""
_ALWAYS = 1 << 20
"""Values that a model may have however small its files are: a head or a pooler of its own."""
_LEAST = 256
"""What a tensor without values counts for."""


@contextmanager
def within_files(checkpoint: Checkpoint) -> Iterator[None]:
    """Let no model be made that has far more values than the files of ``checkpoint`` can hold.

    The making ends as soon as that is clear, with ``CheckpointError``: a config of another model,
    or one with a size mistyped, would else take time and memory that its files do not suggest.
    """
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )

    nbytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    limit, values = _VALUES_PER_BYTE * nbytes + _ALWAYS, 0

    def count(module: Any, name: str, tensor: Tensor | None) -> None:
        nonlocal values
        values += 0 if tensor is None else max(tensor.numel(), _LEAST)
        if values > limit:
            raise CheckpointError(
                f"config.json describes a model of more than {limit} values, and the files beside"
                f" it hold {nbytes} bytes",
                "use the config.json that belongs to these weights",
                path=checkpoint.folder,
            )

    handles = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
