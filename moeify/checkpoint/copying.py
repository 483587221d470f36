"""Copies of whole files, whose source may fail, shrink or vanish meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeify.errors import CheckpointError

_BLOCK_BYTES = 1 << 20


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of ``source`` into the new file ``target``.

    Raises ``CheckpointError`` when ``source`` cannot be read or changes its size meanwhile;
    ``OSError`` is left for failures of ``target``.
    """
    done = 0
    with reading(source):
        reader = os.open(source, os.O_RDONLY)
    try:
        expected = os.fstat(reader).st_size
        with open(target, "xb", buffering=0) as writer:
            while True:
                with reading(source):
                    block = os.read(reader, _BLOCK_BYTES)
                if not block:
                    break
                done += len(block)
                rest = memoryview(block)
                while rest:
                    rest = rest[writer.write(rest) :]
    finally:
        os.close(reader)
    if done != expected:
        raise CheckpointError(
            f"{source.name} changed its size from {expected} to {done} bytes while it was copied",
            "wait until nobody writes to the source, then run the command again",
            path=source,
        )


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Turn failures to read the file ``source`` into ``CheckpointError``."""
    try:
        yield
    except OSError as error:
        raise unreadable(source, error) from error


def unreadable(source: Path, error: OSError) -> CheckpointError:
    """The error for a file that the system fails to read."""
    return CheckpointError(f"reading {source.name} failed: {error.strerror}", path=source)
