"""SHA-256 of files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

SMALL_BYTES = 16 << 20
"""Files up to this size are summed always: that takes hundredths of a second."""


def sha256(path: Path, *, cached: bool = False) -> str:
    """SHA-256 of a file in hexadecimal.

    Unless it may be ``cached``, what memory holds of it is dropped first, so that the disk is read.
    """
    with open(path, "rb") as file:
        if not cached and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
