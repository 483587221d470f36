"""Sums and copies of whole files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from moeify.checkpoint.checksums import sha256
from moeify.checkpoint.copying import copy_file
from moeify.errors import CheckpointError

MIB = 1 << 20
SIZES = [0, 1, 4095, 4096, 4097, 4 * MIB, 4 * MIB + 1, 9 * MIB + 13]


@pytest.mark.parametrize("size", SIZES)
def test_sums(tmp_path: Path, elsewhere: Path, size: int) -> None:
    for folder in (tmp_path, elsewhere):  # a file system with direct reads, and perhaps one without
        path = folder / "file"
        raw = os.urandom(size)
        path.write_bytes(raw)
        assert sha256(path) == sha256(path, cached=True) == hashlib.sha256(raw).hexdigest()


def test_copies(tmp_path: Path) -> None:
    raw = os.urandom(3 * MIB + 5)
    (tmp_path / "a").write_bytes(raw)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == raw
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CheckpointError, match="reading gone failed: No such file"):
        copy_file(tmp_path / "gone", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with pytest.raises(CheckpointError, match="changed its size from 0 to"):
        copy_file(Path("/proc/self/status"), tmp_path / "e")  # a file that grows while it is read
