"""Matrices with their axes exchanged, and matrices side by side: for files that hold experts turned round."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.gather import Gather, Index, interleave
from moeify.checkpoint.header import StoredTensor, tensor_nbytes
from moeify.checkpoint.jobs import Piece, Tally
from moeify.checkpoint.slices import Run, Slice, run_nbytes

_PANEL_BYTES = 2 << 20
"""How much of a matrix is turned at a time: a read for each of its rows brings a few columns."""


class _Panel(threading.local):
    """The rows that a thread turned last, because what follows them is mostly asked for next."""

    def __init__(self) -> None:
        self.of: Turned | None = None
        self.first = 0
        self.rows: NDArray[np.void] = np.empty((0, 0), "V1")


_panel = _Panel()


@dataclass(frozen=True, slots=True, eq=False)
class Turned:
    """``part``, seen as [``height``, ``width``], with its axes exchanged: [``width``, ``height``]."""

    part: Slice | Gather
    height: int
    width: int

    @property
    def tensor(self) -> StoredTensor:
        """What is read."""
        return self.part.tensor

    @property
    def start(self) -> int:
        """Where ``part`` begins in the tensor; noise is drawn in the order of the turned elements."""
        return self.part.start

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.part.elements

    def read_into(self, files: SourceFiles, start: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``start`` on."""
        row = tensor_nbytes(self.tensor.dtype, (self.height,))
        while out:
            number, skipped = divmod(start, row)
            wanted = -(-(skipped + len(out)) // row)
            rows = self._rows(files, number, wanted).reshape(-1).view(np.uint8)
            taken = rows[skipped : skipped + len(out)]
            np.frombuffer(out, np.uint8)[: len(taken)] = taken
            out, start = out[len(taken) :], start + len(taken)

    def _rows(self, files: SourceFiles, number: int, wanted: int) -> NDArray[np.void]:
        """Turned rows from row ``number`` on, one at least, and ``wanted`` ones where they must be read."""
        if _panel.of is not self or not _panel.first <= number < _panel.first + len(_panel.rows):
            unit = tensor_nbytes(self.tensor.dtype, (1,))
            count = min(max(wanted, _PANEL_BYTES // (self.height * unit)), self.width - number)
            _panel.of, _panel.rows = None, np.empty((0, 0), "V1")  # two at a time would be memory for nothing
            block = self._columns(files, np.arange(number, number + count), unit)
            _panel.of, _panel.first, _panel.rows = self, number, np.ascontiguousarray(block.T)
        return _panel.rows[number - _panel.first :]

    def _columns(self, files: SourceFiles, places: Index, unit: int) -> NDArray[np.void]:
        """Columns of the matrix that is turned, [height, columns]."""
        part, rows = self.part, None
        if isinstance(part, Slice):
            columns = Gather(part, places, self.width, 1)
        elif part.inner == 1:
            columns = replace(part, index=part.index[places])
        else:
            columns, rows = Gather(part.part, places, self.width, 1), part.index
        raw = bytearray(run_nbytes(columns))
        columns.read_into(files, 0, memoryview(raw))
        block = np.frombuffer(raw, np.dtype((np.void, unit))).reshape(-1, len(places))
        return block if rows is None else block[rows]


def turned(run: Run, shape: tuple[int, ...]) -> Turned:
    """``run``, neurons of a matrix of ``shape`` or all of it, with its axes exchanged."""
    assert isinstance(run, Slice | Gather), "what reads a matrix's elements in place"
    height, width = shape
    if isinstance(run, Gather):
        height, width = (len(run.index), width) if run.inner > 1 else (height, len(run.index))
    return Turned(run, height, width)


@dataclass(frozen=True, slots=True)
class SideBySide(Piece):
    """``parts``, each of them [``rows``, its own width], one beside the other in one matrix."""

    parts: tuple[Piece, ...]
    rows: int

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def grain(self) -> int:
        return self.nbytes // self.rows

    def sources(self) -> Iterator[StoredTensor]:
        for part in self.parts:
            yield from part.sources()

    def scanned(self) -> Iterator[StoredTensor]:
        for part in self.parts:
            yield from part.scanned()

    def fill(self, files: SourceFiles, start: int, out: memoryview) -> Tally | None:
        widths = [part.nbytes // self.rows for part in self.parts]
        found = Tally()

        def fill(number: int, begin: int, raw: memoryview) -> None:
            tally = self.parts[number].fill(files, begin, raw)
            if tally is not None:
                found.add(tally)

        interleave(widths, start, out, fill)
        return found
