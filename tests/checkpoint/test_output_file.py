"""Aligned chunks into a file: past the page cache, through it, and when the disk is full."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeify.checkpoint.output_file import ALIGNMENT, OutputFile, aligned_buffer, create_file, cut_file, is_memory

CONTENT = os.urandom(5 * ALIGNMENT + 123)


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on disk, and one in memory, where many kernels have no direct writes."""
    if request.param == "disk":
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as temporary:
        yield Path(temporary)


def test_what_lies_in_memory() -> None:
    assert is_memory(Path("/dev/shm"))
    assert not is_memory(Path("/proc"))


def write(path: Path) -> None:
    """The content in two chunks, the second one first."""
    create_file(path, len(CONTENT))
    target = OutputFile(path)
    buffer = aligned_buffer(4 * ALIGNMENT)
    try:
        for start in (3 * ALIGNMENT, 0):
            part = CONTENT[start : start + 3 * ALIGNMENT]
            buffer[: len(part)] = part
            target.write(buffer[: -(-len(part) // ALIGNMENT) * ALIGNMENT], start)
    finally:
        target.close()
    cut_file(path, len(CONTENT))


def test_chunks_in_any_order(folder: Path) -> None:
    write(folder / "out")
    assert (folder / "out").read_bytes() == CONTENT


@pytest.mark.parametrize("share", [(2, 3), (1, 2), (1, 5)])
def test_the_kernel_takes_little_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: tuple[int, int]
) -> None:
    """Also amounts from which no direct write can go on, or that it refuses."""
    whole, sizes = os.pwrite, []

    def some(handle: int, data: memoryview, position: int) -> int:
        sizes.append(len(data))
        return whole(handle, data[: max(len(data) * share[0] // share[1], 1)], position)

    monkeypatch.setattr("os.pwrite", some)
    write(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert len(sizes) > 4


def test_other_failures_are_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.pwrite", fail)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "out")


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError):
        write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_file_that_may_not_grow_so_large_fails_at_once(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) - 1, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            create_file(tmp_path / "out", len(CONTENT))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
