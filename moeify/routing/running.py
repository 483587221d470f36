"""Calling a model that other people's config.json describes."""

from __future__ import annotations

import os
from typing import Any

from moeify.errors import CheckpointError, ConfigError

_BY_VALUES = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError)
"""What a class raises for values that it cannot compute with."""
_SCARCE = ("DefaultCPUAllocator", "Cannot allocate memory")
"""How torch says that memory was not enough."""


def run_model(model: Any, **inputs: Any) -> Any:
    """What ``model``, or a part of one, returns for ``inputs``.

    Raises ``CheckpointError`` in place of what its code or torch raise, and ``MemoryError`` where
    memory was not enough.
    """
    try:
        return model(**inputs)
    except _BY_VALUES as error:
        raise CheckpointError(
            f"{type(model).__name__} cannot run: {first_line(error)}",
            "compare config.json with the one that these weights were published with",
        ) from error


def first_line(error: BaseException) -> str:
    """An error's first line; raises again what no file can cause, memory that is not enough too."""
    foreign = type(error).__name__ == "PanicException"  # of Rust, and no Exception
    if not (foreign or isinstance(error, Exception)) or isinstance(error, MemoryError):
        raise error
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or any(said in text for said in _SCARCE):
        raise MemoryError(text) from error
    return (text.splitlines() or [type(error).__name__])[0]


def device_for(name: str | None) -> Any:
    """The device that is asked for, or this process's accelerator; raises ``ConfigError``."""
    import torch

    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = (name or (present.type if present is not None else "cpu")).split(":")[0]
    if kind != "cpu" and (present is None or present.type != kind):
        here = "cpu" if present is None else f"cpu and {present.type}"
        raise ConfigError(f"device {name!r} is not here", f"pass --device with one of: {here}")
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
