"""What a run wrote, file by file: the sums that its files must still have when it ends."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moeify.checkpoint.checksums import cached_sha256, check_chunks, sha256
from moeify.checkpoint.copying import copy_file
from moeify.checkpoint.staging import sync_tree
from moeify.errors import CheckpointError, OutputError

__all__ = ["Ledger"]

SMALL_BYTES = 16 << 20
"""Files up to this size are summed always: that takes hundredths of a second."""


class Ledger:
    """Sums of written files, kept while the bytes are in memory.

    Without ``checksum`` only what costs nothing is summed: files of up to 16 MiB, and linked ones
    whose sum the source recorded.
    """

    def __init__(self, checksum: bool = False) -> None:
        self.checksum = checksum
        self._chunks: dict[str, dict[int, tuple[int, int]]] = {}
        self._digests: dict[str, str] = {}
        self._linked: set[str] = set()

    def chunk(self, file: str, position: int, nbytes: int, crc: int) -> None:
        """Note a part of a file that several write; its CRC-32 shows every flipped bit."""
        self._chunks.setdefault(file, {})[position] = (nbytes, crc)

    def link(self, file: str, recorded: str | None) -> None:
        """Note a file that is the source's own, and the SHA-256 that the source recorded."""
        if recorded is not None:
            self._digests[file] = recorded
            self._linked.add(file)

    def copy(self, source: Path, folder: Path, name: str) -> None:
        """Copy a whole file into ``folder``; see ``copy_file`` for the errors."""
        summed = self.checksum or source.stat().st_size <= SMALL_BYTES
        digest = copy_file(source, folder / name, summed)
        if digest is not None:
            self._digests[name] = digest

    def digests(self, folder: Path, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 by name, of as many files in ``folder`` as ``checksum`` asks for.

        Raises ``OutputError`` where the disk gives back something else than was written, and
        ``CheckpointError`` where a linked file is not what the source's record says.
        """
        names = [*names]
        for name in names:
            known = name in self._digests or name in self._chunks
            if not known and (self.checksum or (folder / name).stat().st_size <= SMALL_BYTES):
                self._digests[name] = cached_sha256(folder / name)
        if not self.checksum:
            return {name: self._digests[name] for name in names if name in self._digests}
        sync_tree(folder)  # what is still on its way cannot be read back
        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda name: self._reread(folder / name, name), names)
            return dict(zip(names, found, strict=True))

    def _reread(self, path: Path, name: str) -> str:
        if name in self._chunks:
            found = check_chunks(path, self._chunks[name])
            if found is None:
                raise _damaged(name)
            return found
        found, wanted = sha256(path), self._digests[name]
        if found != wanted and name in self._linked:
            raise CheckpointError(
                f"{name} of the source is not what its moeify.json says: its SHA-256 is"
                f" {found[:12]}..., not {wanted[:12]}...",
                "moeify inspect SOURCE --verify checks every file; download or make it again",
                path=path,
            )
        if found != wanted:
            raise _damaged(name)
        return found


def _damaged(name: str) -> OutputError:
    return OutputError(
        f"{name} came back from the disk with other bytes than were written; nothing was kept",
        "a disk, the memory or another program changes data: check them, then run it again",
    )
