"""Opening regular files, and nothing that blocks, never ends or lies outside its folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from moeify.errors import CheckpointError


def open_regular(path: Path) -> tuple[int, int]:
    """A descriptor of the regular file ``path``, and its size in bytes.

    Raises ``CheckpointError``. Pipes and devices are never waited for, also where one takes the
    file's place just now.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing from {path.parent}", path=path) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {path.name}: {reason}", path=path) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise CheckpointError(f"{path.name} is not a regular file", path=path)
    return handle, status.st_size


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; raises ``CheckpointError``."""
    handle, size = open_regular(path)
    with open(handle, "rb") as file:
        if size > limit:
            raise CheckpointError(f"{path.name} has {size} bytes, more than the {limit} that are read", path=path)
        try:
            return file.read(limit)
        except OSError as error:
            raise CheckpointError(f"cannot read {path.name}: {error.strerror}", path=path) from error


def read_text(path: Path, limit: int) -> str:
    """The first ``limit`` bytes of a regular file as text, what is no UTF-8 replaced.

    Raises ``CheckpointError``.
    """
    handle, _ = open_regular(path)
    with open(handle, "rb") as file:
        try:
            return file.read(limit).decode("utf-8", errors="replace")
        except OSError as error:
            raise CheckpointError(f"cannot read {path.name}: {error.strerror}", path=path) from error
