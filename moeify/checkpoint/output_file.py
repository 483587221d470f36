"""One output file, written in large aligned chunks that go past the page cache where they can."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from contextlib import suppress
from pathlib import Path

ALIGNMENT = 4096
"""What memory, length and position of a direct write must be multiples of."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def aligned_buffer(nbytes: int) -> memoryview:
    """Fresh memory that starts on a page, as direct writes want it."""
    memory = mmap.mmap(-1, nbytes)
    with suppress(AttributeError, OSError):  # where there are huge pages, few need to be pinned
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def is_memory(folder: Path) -> bool:
    """Whether files in ``folder`` lie in memory, which takes more than one core can give."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    kinds = (line.split(" - ")[1].split()[0] for line in mounts if line.split()[2] == number)
    return next(kinds, None) in ("tmpfs", "ramfs")


def create_file(path: Path, nbytes: int, *, reserve: bool = True) -> None:
    """Make a new file with room for ``nbytes`` and what a last whole page takes beyond them.

    Without ``reserve`` the room is taken as it is written to.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if reserve:
            _reserve(handle, -(-nbytes // ALIGNMENT) * ALIGNMENT)
    finally:
        os.close(handle)


def cut_file(path: Path, nbytes: int) -> None:
    """Take away what was written beyond ``nbytes``."""
    os.truncate(path, nbytes)


class OutputFile:
    """A file from ``create_file``, open for one writer of several.

    Direct writes spare the copy into the page cache, do not push out what else is cached there,
    and leave nothing for the final flush to wait for. Where the file system has none (or the
    platform, as macOS), the same chunks go through the cache.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._direct = path, True
        self._handle = _open(path)

    def write(self, chunk: memoryview, position: int) -> None:
        """Write all of ``chunk``, however little the kernel takes at a time.

        The chunk lies in an ``aligned_buffer``, its position and length are multiples of
        ``ALIGNMENT``; what exceeds the file's size is for ``cut_file`` to cut off.
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

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except (AttributeError, OSError) as error:  # no such flag, or a file system that refuses it
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
    return os.open(path, os.O_WRONLY)


def _go_through_the_cache(handle: int) -> None:
    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~getattr(os, "O_DIRECT", 0))


def _reserve(handle: int, nbytes: int) -> None:
    """Take the space at once: a full disk shows here, and several can write side by side."""
    try:
        os.posix_fallocate(handle, 0, nbytes)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        os.ftruncate(handle, nbytes)
