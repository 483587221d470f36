"""Sums of what was written, against what the disk gives back."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import pytest

from moeify.checkpoint.checksums import blocks, cached_sha256, check_chunks, sha256
from moeify.checkpoint.copying import copy_file
from moeify.checkpoint.ledger import Ledger
from moeify.errors import CheckpointError, OutputError

MIB = 1 << 20
SIZES = [0, 1, 4095, 4096, 4097, 4 * MIB, 4 * MIB + 1, 9 * MIB + 13]


@pytest.mark.parametrize("size", SIZES)
def test_blocks_are_the_file(tmp_path: Path, elsewhere: Path, size: int) -> None:
    for folder in (tmp_path, elsewhere):  # a file system with direct reads, and perhaps one without
        path = folder / "file"
        raw = os.urandom(size)
        path.write_bytes(raw)
        assert b"".join(bytes(block) for block in blocks(path)) == raw
        assert sha256(path) == cached_sha256(path) == hashlib.sha256(raw).hexdigest()


def chunked(raw: bytes, size: int) -> dict[int, tuple[int, int]]:
    parts = [(start, raw[start : start + size]) for start in range(0, len(raw), size)]
    return {start: (len(part), zlib.crc32(part)) for start, part in parts}


@pytest.mark.parametrize("size", [5000, 3 * MIB, 4 * MIB, 5 * MIB])
def test_chunks_need_not_be_blocks(tmp_path: Path, size: int) -> None:
    raw = os.urandom(9 * MIB + 13)
    path = tmp_path / "file"
    path.write_bytes(raw)
    sums = chunked(raw, size)
    assert check_chunks(path, sums) == hashlib.sha256(raw).hexdigest()
    for place in (0, size - 1, size, len(raw) - 1):
        wrong = bytearray(raw)
        wrong[place] ^= 16
        path.write_bytes(wrong)
        assert check_chunks(path, sums) is None
    for other in (raw + b"x", raw[:-1], b"", raw[:size]):
        path.write_bytes(other)
        assert check_chunks(path, sums) is None


def test_a_ledger_without_checksum_sums_what_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeify.checkpoint.ledger.SMALL_BYTES", 100)
    (tmp_path / "small").write_bytes(b"x" * 100)
    (tmp_path / "large").write_bytes(b"x" * 101)
    assert Ledger().digests(tmp_path, ["small", "large"]).keys() == {"small"}
    assert Ledger(checksum=True).digests(tmp_path, ["small", "large"]).keys() == {"small", "large"}


def test_a_ledger_notices_every_kind_of_file(tmp_path: Path) -> None:
    source, stage = tmp_path / "source", tmp_path / "stage"
    source.mkdir(), stage.mkdir()
    (source / "copied").write_bytes(b"copied")
    ledger = Ledger(checksum=True)
    ledger.copy(source / "copied", stage, "copied")
    (stage / "written").write_bytes(b"written")
    ledger.chunk("written", 0, 7, zlib.crc32(b"written"))
    (stage / "linked").write_bytes(b"linked")
    ledger.link("linked", hashlib.sha256(b"linked").hexdigest())
    names = ["copied", "written", "linked"]
    found = ledger.digests(stage, names)
    assert found == {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    for name, error in (("copied", OutputError), ("written", OutputError),
                        ("linked", CheckpointError)):  # fmt: skip
        (stage / name).write_bytes(b"damaged")
        with pytest.raises(error, match=name):
            ledger.digests(stage, [name])


def test_copies(tmp_path: Path) -> None:
    raw = os.urandom(3 * MIB + 5)
    (tmp_path / "a").write_bytes(raw)
    assert copy_file(tmp_path / "a", tmp_path / "b") is None
    assert copy_file(tmp_path / "a", tmp_path / "c", summed=True) == cached_sha256(tmp_path / "a")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes() == raw
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CheckpointError, match="reading gone failed: No such file"):
        copy_file(tmp_path / "gone", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with pytest.raises(CheckpointError, match="changed its size from 0 to"):
        copy_file(Path("/proc/self/status"), tmp_path / "e")  # a file that grows while it is read
