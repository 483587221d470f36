"""The bytes of a file in chunks: what one write takes, and the parts of pieces it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moeify.checkpoint.jobs import Piece
from moeify.checkpoint.output_file import ALIGNMENT

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a file from ``position`` on, and the parts of pieces (from, to) they are made of."""

    position: int
    nbytes: int
    parts: tuple[tuple[Piece, int, int], ...]


def chunks(pieces: Iterable[Piece]) -> Iterator[Chunk]:
    """Cut the bytes of ``pieces`` into chunks that begin on multiples of ``ALIGNMENT``.

    A chunk ends between two grains of a piece where such a place is aligned, else where it must.
    """
    position = nbytes = 0
    parts: list[tuple[Piece, int, int]] = []
    for piece in pieces:
        start = 0
        while start < piece.nbytes:
            stop = min(start + CHUNK_BYTES - nbytes, piece.nbytes)
            full = nbytes + stop - start == CHUNK_BYTES
            if stop < piece.nbytes:
                better = stop - stop % piece.grain
                if better > start and (nbytes + better - start) % ALIGNMENT == 0:
                    stop = better
            parts.append((piece, start, stop))
            nbytes += stop - start
            start = stop
            if full:
                yield Chunk(position, nbytes, tuple(parts))
                position, nbytes, parts = position + nbytes, 0, []
    if parts:
        yield Chunk(position, nbytes, tuple(parts))
