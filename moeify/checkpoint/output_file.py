"""One output file, written in large aligned chunks that go past the page cache where they can."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

__all__ = ["ALIGNMENT", "OutputFile", "aligned_buffer"]

ALIGNMENT = 4096
"""What memory, length and position of a direct write must be multiples of."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def aligned_buffer(nbytes: int) -> memoryview:
    """Fresh memory that starts on a page, as direct writes want it."""
    return memoryview(mmap.mmap(-1, nbytes))


class OutputFile:
    """A new file of known size, written by position from several threads.

    Direct writes spare the copy into the page cache, do not push out what else is cached there,
    and leave nothing for the final flush to wait for. Where the file system has none (or the
    platform, as macOS), the same chunks go through the cache.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.name, self._nbytes, self._direct = path.name, nbytes, True
        self._handle = _create(path)
        try:
            _reserve(self._handle, -(-nbytes // ALIGNMENT) * ALIGNMENT)
        except OSError:
            os.close(self._handle)
            raise

    def write(self, chunk: memoryview, position: int) -> None:
        """Write all of ``chunk``, however little the kernel takes at a time.

        The chunk lies in an ``aligned_buffer``, its position and length are multiples of
        ``ALIGNMENT``; what exceeds the file's size is cut off by ``finish``.
        """
        while chunk:
            try:
                written = os.pwrite(self._handle, chunk, position)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                written = 0  # some file systems refuse direct writes as late as this
            chunk, position = chunk[written:], position + written
            if chunk:  # what is left may start anywhere: no place for a direct write
                self._direct = False
                _go_through_the_cache(self._handle)

    def finish(self) -> None:
        """Cut the file to its size."""
        os.ftruncate(self._handle, self._nbytes)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666)
    except (AttributeError, OSError) as error:  # no such flag, or a file system that refuses it
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
    path.unlink(missing_ok=True)  # some kernels create the file before they refuse the flag
    return os.open(path, flags, 0o666)


def _go_through_the_cache(handle: int) -> None:
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~getattr(os, "O_DIRECT", 0))


def _reserve(handle: int, nbytes: int) -> None:
    """Take the space at once: a full disk shows here, and threads can write side by side."""
    try:
        os.posix_fallocate(handle, 0, nbytes)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        os.ftruncate(handle, nbytes)
