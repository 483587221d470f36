"""Plans as plain data: a job is one output tensor, a piece one contiguous run of its bytes."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moeify.checkpoint.arithmetic import (
    FLOAT_DTYPES,
    Float32,
    add_noise,
    decode,
    encode,
    normal,
)
from moeify.checkpoint.files import Slice, SourceFiles, copy_range, write_all
from moeify.checkpoint.header import DTYPE_BITS, StoredTensor, tensor_nbytes
from moeify.errors import CheckpointError

__all__ = [
    "Blend",
    "Copy",
    "Job",
    "Noise",
    "Piece",
    "Slice",
    "Tally",
    "Values",
    "copy_of",
]

BLOCK_ELEMENTS = 1 << 18
_COPY_BYTES = 64 << 20


@dataclass(slots=True)
class Tally:
    """What noise survived rounding: sums over the sampled elements, in units of std(W)^2."""

    elements: int = 0
    squares: float = 0.0
    overflows: int = 0

    def add(self, other: Tally) -> None:
        """Add the sums of ``other``."""
        self.elements += other.elements
        self.squares += other.squares
        self.overflows += other.overflows

    @property
    def relative_std(self) -> float:
        """Root mean square of (written - source) / std(source)."""
        return (self.squares / self.elements) ** 0.5 if self.elements else 0.0


class Piece(Protocol):
    """One contiguous run of output bytes and how it comes about."""

    @property
    def nbytes(self) -> int:
        """Length of the run."""

    def sources(self) -> Iterator[StoredTensor]:
        """The tensors that are read to make it."""

    def spans(self) -> Iterator[tuple[int, int]]:
        """Byte ranges of the run that can be made independently of each other."""

    def write(
        self, files: SourceFiles, span: tuple[int, int], target: int, offset: int
    ) -> Tally | None:
        """Make one span and write it at ``offset`` (of the piece's start) of file ``target``."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of a source tensor as they are, whatever their dtype."""

    source: Slice

    @property
    def nbytes(self) -> int:
        return tensor_nbytes(self.source.tensor.dtype, (self.source.elements,))

    def sources(self) -> Iterator[StoredTensor]:
        yield self.source.tensor

    def spans(self) -> Iterator[tuple[int, int]]:
        return _ranges(self.nbytes, _COPY_BYTES)

    def write(
        self, files: SourceFiles, span: tuple[int, int], target: int, offset: int
    ) -> Tally | None:
        start, stop = span
        origin = self.source.byte_start + start
        copy_range(files, self.source.tensor.path, origin, target, offset + start, stop - start)
        return None


@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise of standard deviation ``relative`` x std(source tensor).

    Its bits depend on ``key`` and on the element's place in the source tensor only.
    """

    relative: float
    key: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Blend:
    """A weighted sum of slices of equal length, computed in float32, plus optional noise.

    One slice with weight 1 is a cast. ``dtype`` is that of the output; the noise is relative to
    the first slice's tensor times its weight.
    """

    terms: tuple[tuple[Slice, float], ...]
    dtype: str
    noise: Noise | None = None

    @property
    def nbytes(self) -> int:
        return tensor_nbytes(self.dtype, (self.terms[0][0].elements,))

    def sources(self) -> Iterator[StoredTensor]:
        for part, _ in self.terms:
            yield part.tensor

    def spans(self) -> Iterator[tuple[int, int]]:
        return _ranges(self.nbytes, BLOCK_ELEMENTS * DTYPE_BITS[self.dtype] // 8)

    def write(
        self, files: SourceFiles, span: tuple[int, int], target: int, offset: int
    ) -> Tally | None:
        if span[0] > 0 and self._is_plain_noise():
            write_all(target, self._noisy_bits(files, span).data.cast("B"), offset + span[0])
            return None
        width = DTYPE_BITS[self.dtype] // 8
        start, count = span[0] // width, (span[1] - span[0]) // width
        values = _weighted_sum(files, self.terms, start, count)
        if self.noise is None:
            write_all(target, encode(values, self.dtype).data.cast("B"), offset + span[0])
            return None
        first, weight = self.terms[0]
        std = files.stds[first.tensor] * abs(weight)
        noisy = values + _noise_for(self.noise, first.start + start, count, std)
        written = encode(noisy, self.dtype)
        write_all(target, written.data.cast("B"), offset + span[0])
        return _survived(values, written, self.dtype, std) if start == 0 else None

    def _is_plain_noise(self) -> bool:
        """Whether ``add_noise`` can do it: one BF16 slice that starts on a block of noise."""
        part, weight = self.terms[0]
        return (
            self.noise is not None
            and len(self.terms) == 1
            and weight == 1.0
            and self.dtype == part.tensor.dtype == "BF16"
            and part.start % BLOCK_ELEMENTS == 0
        )

    def _noisy_bits(self, files: SourceFiles, span: tuple[int, int]) -> NDArray[np.uint16]:
        part, noise = self.terms[0][0], self.noise
        assert noise is not None, "asked only for noise"
        begin = part.byte_start + span[0]
        raw = files.read(part.tensor.path, begin, span[1] - span[0])
        block = (part.start + span[0] // 2) // BLOCK_ELEMENTS
        return add_noise(raw, (*noise.key, block), noise.relative * files.stds[part.tensor])


class Values(ABC):
    """A piece small enough to be computed whole, as routers are.

    Subclasses are frozen dataclasses with a ``dtype``; ``values`` are its elements in float32.
    """

    dtype: str

    @property
    @abstractmethod
    def elements(self) -> int:
        """Number of elements."""

    @abstractmethod
    def values(self, files: SourceFiles) -> Float32:
        """The elements, in any shape."""

    @property
    def nbytes(self) -> int:
        """Length of the run."""
        return tensor_nbytes(self.dtype, (self.elements,))

    def sources(self) -> Iterator[StoredTensor]:
        """The tensors that are read to make it."""
        yield from ()

    def spans(self) -> Iterator[tuple[int, int]]:
        """The whole run."""
        yield 0, self.nbytes

    def write(
        self, files: SourceFiles, span: tuple[int, int], target: int, offset: int
    ) -> Tally | None:
        """Compute the elements and write them."""
        write_all(target, encode(self.values(files), self.dtype).tobytes(), offset + span[0])
        return None


def _weighted_sum(
    files: SourceFiles, terms: tuple[tuple[Slice, float], ...], start: int, count: int
) -> Float32:
    total = None
    for part, weight in terms:
        values = files.read_slice(part, start, count)
        if weight != 1.0:
            values *= np.float32(weight)
        total = values if total is None else np.add(total, values, out=total)
    assert total is not None, "a blend has at least one term"
    return total


def _noise_for(noise: Noise, start: int, count: int, std: float) -> Float32:
    """Noise for elements ``start`` .. ``start + count`` of the source tensor."""
    first, last = start // BLOCK_ELEMENTS, (start + count - 1) // BLOCK_ELEMENTS
    blocks = [normal((*noise.key, block), BLOCK_ELEMENTS) for block in range(first, last + 1)]
    draws = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    begin = start - first * BLOCK_ELEMENTS
    draws = draws[begin : begin + count]
    draws *= np.float32(noise.relative * std)
    return draws


def _survived(values: Float32, written: NDArray[np.generic], dtype: str, std: float) -> Tally:
    stored = decode(written.tobytes(), dtype)
    overflows = int(np.count_nonzero(~np.isfinite(stored)))
    difference = np.where(np.isfinite(stored), stored - values, 0).astype(np.float64)
    # No BLAS here: its threads spin while they wait, and would take the cores from ours.
    squares = float(np.square(difference).sum()) / std**2 if std else 0.0
    return Tally(elements=len(values), squares=squares, overflows=overflows)


def copy_of(
    tensor: StoredTensor, dtype: str, noise: Noise | None = None, start: int = 0,
    elements: int | None = None, weight: float = 1.0,
) -> Piece:  # fmt: skip
    """The cheapest piece that yields ``elements`` of ``tensor`` from ``start`` on as ``dtype``.

    They are multiplied by ``weight``.

    Raises ``CheckpointError`` when the tensor cannot be cast or take noise.
    """
    part = Slice(tensor, start, tensor.elements if elements is None else elements)
    if noise is None and dtype == tensor.dtype and weight == 1.0:
        return Copy(part)
    if tensor.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor {tensor.name!r} has dtype {tensor.dtype}, which is quantised or no float:"
            " it can be copied, not changed",
            "upcycle the unquantised checkpoint, or pass --noise 0 --dtype auto",
            path=tensor.path,
        )
    return Blend(((part, weight),), dtype, noise)


@dataclass(frozen=True, slots=True)
class Job:
    """One output tensor: its header entry and the pieces that follow one another in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = field(default=())

    def __post_init__(self) -> None:
        planned = sum(piece.nbytes for piece in self.pieces)
        assert planned == self.nbytes, f"{self.name}: {planned} bytes planned for {self.nbytes}"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return tensor_nbytes(self.dtype, self.shape)


def _ranges(stop: int, step: int) -> Iterator[tuple[int, int]]:
    edges = itertools.chain(range(0, stop, step), (stop,))
    return itertools.pairwise(edges)
