"""The last step of every output: what it holds is checked, and its files are listed."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from moeify.checkpoint.ledger import Ledger
from moeify.checkpoint.reader import Checkpoint
from moeify.families.structure import check_structure
from moeify.provenance.card import CARD_FILE
from moeify.provenance.record import RECORD_FILE, FileEntry, write_files

__all__ = ["seal"]

_UNLISTED = (RECORD_FILE, CARD_FILE)  # the list itself, and a page that is there to be edited


def seal(stage: Path, ledger: Ledger) -> None:
    """Check the output in ``stage`` and list its files in moeify.json, the last one written.

    Headers are read from the disk and held against the index and against what the class in
    config.json loads. With ``ledger.checksum`` every byte is read back as well. Raises
    ``CheckpointError`` and ``OutputError``; call it inside ``staged``.
    """
    opened = Checkpoint.open(stage)
    check_structure(opened.tensors, opened.config, "the output")
    names = [name for name in _names(stage) if name != RECORD_FILE]
    digests = ledger.digests(stage, names)
    entries = {
        name: FileEntry(nbytes=(stage / name).stat().st_size, sha256=digests.get(name))
        for name in names
        if name not in _UNLISTED
    }
    write_files(stage, entries)
    if ledger.checksum:
        Ledger(checksum=True).digests(stage, [RECORD_FILE])


def _names(folder: Path) -> list[str]:
    """Every file below ``folder``, relative to it."""
    return sorted(
        PurePosixPath(Path(place, name).relative_to(folder)).as_posix()
        for place, _, files in os.walk(folder)
        for name in files
    )
