"""SHA-256 of files."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from moeify.checkpoint.output_file import aligned_buffer

__all__ = ["SMALL_BYTES", "blocks", "cached_sha256", "sha256"]

SMALL_BYTES = 16 << 20
"""Files up to this size are summed always: that takes hundredths of a second."""

_BLOCK_BYTES = 4 << 20


def blocks(path: Path) -> Iterator[memoryview]:
    """The bytes of ``path``, 4 MiB at a time, the next ones on their way meanwhile.

    They are read past the page cache, or after asking the kernel to drop what it caches, where
    the file system has no direct reads. Each block is valid until the next one is asked for.
    """
    handle = _open(path)
    try:
        with ThreadPoolExecutor(1) as ahead:
            buffers = (aligned_buffer(_BLOCK_BYTES), aligned_buffer(_BLOCK_BYTES))
            number, more = 0, True
            coming = ahead.submit(_fill, handle, buffers[0], 0)
            while more:
                got = coming.result()
                more = got == _BLOCK_BYTES
                block = buffers[number % 2][:got]
                number += 1
                if more:
                    coming = ahead.submit(_fill, handle, buffers[number % 2], number * _BLOCK_BYTES)
                if got:
                    yield block
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    direct = getattr(os, "O_DIRECT", 0)
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | direct)
        try:
            os.preadv(handle, [aligned_buffer(4096)], 0)  # refused here, if at all
            return handle
        except OSError as error:
            os.close(handle)
            if error.errno != errno.EINVAL:
                raise
    handle = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    return handle


def _fill(handle: int, buffer: memoryview, start: int) -> int:
    done = 0
    while done < len(buffer):
        got = os.preadv(handle, [buffer[done:]], start + done)
        if not got:
            break
        done += got
        if done % 4096:  # the end of the file: a direct read cannot begin here
            break
    return done


def cached_sha256(path: Path) -> str:
    """SHA-256 of a small file that was written a moment ago, from the page cache."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file as the disk gives it back, in hexadecimal."""
    digest = hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
    return digest.hexdigest()
