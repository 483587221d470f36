"""Neurons of a stored tensor, taken by index along either axis."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import StoredTensor, tensor_nbytes
from moeify.checkpoint.slices import Run, Slice, run_nbytes
from moeify.errors import ConfigError

Index = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_READ_BYTES = 1 << 14
"""Bytes that are read in the time that one read more takes."""
_BLOCK_BYTES = 1 << 20
_ROW_BYTES, _KEPT_BYTES = 4 << 20, 8 << 20
"""Longer rows are not read whole, and of larger runs nothing is kept."""
_FEW = 16
_KINDS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("u2"), 4: np.dtype("u4"), 8: np.dtype("u8")}


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """The elements of ``part``, seen as [outer, ``length``, ``inner``], at ``index`` of ``length``.

    They come in the order of ``index``, which may leave out and repeat; the dtype may be any whose
    ``inner`` elements fill bytes. Raises ``ConfigError`` for places that ``part`` does not have.
    """

    part: Slice
    index: Index
    length: int
    inner: int

    def __post_init__(self) -> None:
        if len(self.index) and not 0 <= self.index.min() <= self.index.max() < self.length:
            wrong = next(i for i in self.index.tolist() if not 0 <= i < self.length)
            raise ConfigError(
                f"tensor {self.part.tensor.name!r} has no neuron {wrong}: they are numbered 0 to {self.length - 1}",
                "take neurons that are there",
            )

    @property
    def tensor(self) -> StoredTensor:
        """What is read."""
        return self.part.tensor

    @property
    def start(self) -> int:
        """Where ``part`` begins in the tensor."""
        return self.part.start

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.part.elements // self.length * len(self.index)

    def read_into(self, files: SourceFiles, start: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``start`` on.

        Where whole rows are read, the thread keeps what it made of them: copies of one slice follow one another.
        """
        kept = files.kept
        if not self._equals(kept.run):
            unit = tensor_nbytes(self.tensor.dtype, (self.inner,))
            ends = [*(np.flatnonzero(np.diff(self.index) != 1) + 1).tolist(), len(self.index)]
            left_out = (self.length - len(self.index)) * unit
            if self.length * unit > _ROW_BYTES or _READ_BYTES * len(ends) <= left_out:
                self._read_runs(files, start, out, unit, ends)
                return
            nbytes = tensor_nbytes(self.tensor.dtype, (self.elements,))
            if nbytes > _KEPT_BYTES:
                self._read_rows(files, start, out, unit, ends)
                return
            kept.run, room = None, kept.room(nbytes)
            self._read_rows(files, 0, room, unit, ends)
            kept.run = self
        out[:] = kept.data[start : start + len(out)]

    def _equals(self, other: object) -> bool:
        """Whether ``other`` takes the same elements in the same order."""
        return isinstance(other, Gather) and (
            (self.part, self.length, self.inner) == (other.part, other.length, other.inner)
            and (self.index is other.index or np.array_equal(self.index, other.index))
        )

    def _read_runs(self, files: SourceFiles, start: int, out: memoryview, unit: int, ends: list[int]) -> None:
        """Neighbours by a read of their own, whose ``ends`` are places in the index."""
        path, base, begins = self.tensor.path, self.part.byte_start, [0, *ends[:-1]]
        firsts = self.index[begins].tolist()
        outer, place = divmod(start, len(self.index) * unit)
        run = bisect_right(ends, place // unit)
        skipped = place - begins[run] * unit
        while out:
            taken = out[: (ends[run] - begins[run]) * unit - skipped]
            row = outer * self.length + firsts[run]
            files.read_into(taken, path, base + row * unit + skipped)
            out, skipped, run = out[len(taken) :], 0, run + 1
            if run == len(ends):
                run, outer = 0, outer + 1

    def _read_rows(self, files: SourceFiles, start: int, out: memoryview, unit: int, ends: list[int]) -> None:
        """Whole rows, of which what is wanted is kept."""
        row = len(self.index) * unit
        fitting = max(1, _BLOCK_BYTES // (self.length * unit))
        raw = memoryview(bytearray(fitting * self.length * unit))
        while out:
            outer, skipped = divmod(start, row)
            count = min(fitting, -(-(skipped + len(out)) // row))
            block = raw[: count * self.length * unit]
            self.part.read_into(files, outer * self.length * unit, block)
            length = min(len(out), count * row - skipped)
            taken = np.frombuffer(out[:length], np.uint8)
            if length == count * row:
                self._take(block, taken.reshape(count, row), unit, ends)
            else:
                rows = np.empty((count, row), np.uint8)
                self._take(block, rows, unit, ends)
                taken[:] = rows.reshape(-1)[skipped : skipped + length]
            out, start = out[length:], start + length

    def _take(self, block: memoryview, kept: Bytes, unit: int, ends: list[int]) -> None:
        """Set ``kept`` [rows, bytes] to what is wanted of the rows in ``block``."""
        if len(ends) <= _FEW:  # neighbours side by side: numpy copies them at the speed of memory
            rows = np.frombuffer(block, np.uint8).reshape(len(kept), -1)
            for begin, end in zip([0, *ends[:-1]], ends, strict=True):
                first, count = int(self.index[begin]), end - begin
                kept[:, begin * unit : end * unit] = rows[:, first * unit : (first + count) * unit]
            return
        kind: np.dtype[Any] = _KINDS.get(unit, np.dtype((np.void, unit)))
        rows = np.frombuffer(block, kind).reshape(len(kept), self.length)
        kept.view(kind)[:] = np.take(rows, self.index, axis=1)


@dataclass(frozen=True, slots=True)
class Beside:
    """``parts`` of one tensor, each seen as [``rows``, its width], side by side."""

    parts: tuple[Run, ...]
    rows: int

    @property
    def tensor(self) -> StoredTensor:
        """What is read."""
        return self.parts[0].tensor

    @property
    def start(self) -> int:
        """Where the first part begins in the tensor."""
        return self.parts[0].start

    @property
    def elements(self) -> int:
        """Number of elements."""
        return sum(part.elements for part in self.parts)

    def read_into(self, files: SourceFiles, start: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``start`` on."""
        widths = [run_nbytes(part) // self.rows for part in self.parts]
        interleave(widths, start, out, lambda number, begin, raw: self.parts[number].read_into(files, begin, raw))


def interleave(
    widths: Sequence[int], start: int, out: memoryview, fill: Callable[[int, int, memoryview], None]
) -> None:
    """Fill ``out`` with the bytes from ``start`` on of matrices side by side, whose rows have ``widths`` bytes.

    ``fill`` makes bytes of the matrix of a number, from a byte of it on.
    """
    row = sum(widths)
    first, skipped = divmod(start, row)
    count = -(-(skipped + len(out)) // row)
    block, place = np.empty((count, row), np.uint8), 0
    for number, width in enumerate(widths):
        raw = memoryview(bytearray(count * width))
        fill(number, first * width, raw)
        block[:, place : place + width] = np.frombuffer(raw, np.uint8).reshape(count, width)
        place += width
    np.frombuffer(out, np.uint8)[:] = block.reshape(-1)[skipped : skipped + len(out)]


def neurons(part: Slice, shape: tuple[int, ...], axis: int, index: Index) -> Gather:
    """What ``part``, of ``shape``, has at ``index`` along ``axis``."""
    return Gather(part, index, shape[axis], int(np.prod(shape[axis + 1 :], dtype=np.int64)))
