"""Packages that add to moeify, found by their entry points."""

from __future__ import annotations

import glob
import os
import sys
from contextlib import suppress

from moeify.cli._output import error


def load_extensions() -> None:
    """Import the modules that installed packages name in the group ``moeify``.

    One that fails adds nothing: whoever does not need it can still work.
    """
    if not _is_extended():
        return
    from importlib.metadata import entry_points

    for entry in entry_points(group="moeify"):
        try:
            entry.load()
        except Exception as failure:
            package = entry.dist.name if entry.dist is not None else entry.value
            reason = f"{type(failure).__name__}: {failure}".partition("\n")[0]
            error(
                f"the extension {entry.name!r} of {package} could not be loaded: {reason}",
                f"mend {entry.value}, or uninstall {package}",
            )


def _is_extended() -> bool:
    """Whether there is any: without, --help need not wait for ``importlib.metadata``."""
    for place in sys.path:
        for path in glob.iglob("*-info/entry_points.txt", root_dir=place or "."):
            with suppress(OSError), open(os.path.join(place, path), "rb") as file:
                if b"[moeify]" in file.read():
                    return True
    return False
