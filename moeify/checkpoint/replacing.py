"""A single file that appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeify.checkpoint.interruption import Interruptions


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place when the block ends well.

    What was at ``path`` stays until then. On any failure, Ctrl-C included, the new file is removed;
    what a kill leaves, the next block on the same path overwrites.
    """
    partial = _partial(path)
    with Interruptions() as interruptions:
        try:
            with interruptions.allowed():
                yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def remove_partial(path: Path) -> None:
    """Remove what a run that was killed while it wrote ``path`` left."""
    _partial(path).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    # The ending stays the last, because it decides what is drawn.
    return path.with_name(f".{path.stem}.moeify-partial{path.suffix}")
