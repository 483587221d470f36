"""Neurons that are drawn anew among others that stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moeify.checkpoint.arithmetic import CHUNK_ELEMENTS, NoiseStream, encode
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.gather import Index
from moeify.checkpoint.header import DTYPE_BITS, StoredTensor
from moeify.checkpoint.jobs import Piece, Tally


@dataclass(frozen=True, slots=True, eq=False)
class Redrawn(Piece):
    """``piece`` with the neurons at ``index`` drawn from N(mean, std^2) of ``tensor``, which it is made of.

    It is seen as [outer, ``length``, ``inner``], its neurons along the middle, and holds ``dtype``. The draws depend
    on ``key`` and the element's place only.
    """

    piece: Piece
    tensor: StoredTensor
    dtype: str
    index: Index
    length: int
    inner: int
    key: tuple[int | str, ...]

    @property
    def nbytes(self) -> int:
        return self.piece.nbytes

    @property
    def grain(self) -> int:
        return self.piece.grain

    def sources(self) -> Iterator[StoredTensor]:
        yield from self.piece.sources()

    def scanned(self) -> Iterator[StoredTensor]:
        yield self.tensor
        yield from self.piece.scanned()

    def fill(self, files: SourceFiles, start: int, out: memoryview) -> Tally | None:
        tally, width = self.piece.fill(files, start, out), DTYPE_BITS[self.dtype] // 8
        first, elements = start // width, np.frombuffer(out, np.uint8).reshape(-1, width)
        stream, mean = NoiseStream(self.key, files.stds[self.tensor]), np.float32(files.mean(self.tensor))
        drawn = np.zeros(self.length, bool)
        drawn[self.index] = True
        for place in range(0, len(elements), CHUNK_ELEMENTS):
            part = elements[place : place + CHUNK_ELEMENTS]
            values = np.full(len(part), mean, np.float32)
            stream.add_to(values, first + place)
            neuron = (np.arange(first + place, first + place + len(part)) // self.inner) % self.length
            where = drawn[neuron]
            part[where] = np.frombuffer(encode(values, self.dtype), np.uint8).reshape(-1, width)[where]
        return tally
