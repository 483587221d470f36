"""Plans as plain data: a job is one output tensor, a piece one contiguous run of its bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from moeify.checkpoint.arithmetic import (
    CHUNK_ELEMENTS,
    NOISE_BLOCK_ELEMENTS,
    Float32,
    NoiseStream,
    decode,
    decode_into,
    encode,
    encode_into,
    encode_noisy_into,
    scratch,
)
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import DTYPE_BITS, FLOAT_DTYPES, StoredTensor, tensor_nbytes
from moeify.checkpoint.lowrank import LowRank, LowRankRows
from moeify.checkpoint.slices import Run, run_nbytes, whole
from moeify.errors import CheckpointError

_JUDGED_ELEMENTS = 1 << 14
_F16_INFINITE = 65520.0  # from here on float16 rounds to infinity


@dataclass(slots=True)
class Tally:
    """What noise survived rounding: sums over the sampled elements, in units of std(W)^2.

    ``overflows`` counts all elements that were finite and are too large for float16.
    """

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


class Piece(ABC):
    """One contiguous run of output bytes and how it comes about.

    ``computed`` says that making it costs computation, for which further processes may be worth
    their start.
    """

    __slots__ = ()
    computed: ClassVar[bool] = True

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Length of the run."""

    @property
    def grain(self) -> int:
        """The run is best cut at multiples of this many bytes; it may be cut at any element.

        What needs whole tensors has the length of the run.
        """
        return 1

    def sources(self) -> Iterator[StoredTensor]:
        """The tensors that are read to make it."""
        yield from ()

    def scanned(self) -> Iterator[StoredTensor]:
        """The tensors whose standard deviation it takes from ``SourceFiles.stds``."""
        yield from ()

    @abstractmethod
    def fill(self, files: SourceFiles, start: int, out: memoryview) -> Tally | None:
        """Make the bytes from ``start`` on, as many as ``out`` takes."""


@dataclass(frozen=True, slots=True)
class Literal(Piece):
    """Bytes that are known already."""

    data: bytes
    computed: ClassVar[bool] = False

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def fill(self, files: SourceFiles, start: int, out: memoryview) -> Tally | None:
        out[:] = self.data[start : start + len(out)]
        return None


@dataclass(frozen=True, slots=True)
class Zeros(Piece):
    """So many bytes of zeros."""

    count: int
    computed: ClassVar[bool] = False

    @property
    def nbytes(self) -> int:
        return self.count

    def fill(self, files: SourceFiles, start: int, out: memoryview) -> Tally | None:
        out[:] = bytes(len(out))
        return None


@dataclass(frozen=True, slots=True)
class Copy(Piece):
    """Bytes of a source tensor as they are, whatever their dtype."""

    source: Run
    computed: ClassVar[bool] = False

    @property
    def nbytes(self) -> int:
        return run_nbytes(self.source)

    def sources(self) -> Iterator[StoredTensor]:
        yield self.source.tensor

    def fill(self, files: SourceFiles, start: int, out: memoryview) -> Tally | None:
        self.source.read_into(files, start, out)
        return None


@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise of standard deviation ``relative`` x std(source tensor).

    Its bits depend on ``key`` and on the element's place in the source tensor only.
    """

    relative: float
    key: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Blend(Piece):
    """A weighted sum of runs of equal length, computed in float32, plus optional noise.

    One run with weight 1 is a cast. ``dtype`` is that of the output; the noise is relative to
    the first run's tensor times its weight. ``changes`` are added to the sum of whole tensors.
    """

    terms: tuple[tuple[Run, float], ...]
    dtype: str
    noise: Noise | None = None
    changes: tuple[LowRank, ...] = ()

    @property
    def nbytes(self) -> int:
        return tensor_nbytes(self.dtype, (self.terms[0][0].elements,))

    def sources(self) -> Iterator[StoredTensor]:
        for part, _ in self.terms:
            yield part.tensor
        for change in self.changes:
            yield from change.sources()

    def scanned(self) -> Iterator[StoredTensor]:
        if self.noise:
            yield self.terms[0][0].tensor

    @property
    def grain(self) -> int:
        return NOISE_BLOCK_ELEMENTS * self._width if self.noise else self._width

    @property
    def _width(self) -> int:
        return DTYPE_BITS[self.dtype] // 8

    def fill(self, files: SourceFiles, start: int, out: memoryview) -> Tally | None:
        first, count = start // self._width, len(out) // self._width
        stream, std = None, 0.0
        if self.noise:
            std = self._std(files)
            stream = NoiseStream(self.noise.key, self.noise.relative * std)
        origin = self.terms[0][0].start + first
        chunk = scratch.values
        changes = [change.open(files) for change in self.changes]
        tally, place = Tally(), 0
        while place < count:
            # Cut at multiples of a chunk, where a stream of noise goes on without a search.
            length = min(CHUNK_ELEMENTS - (origin + place) % CHUNK_ELEMENTS, count - place)
            values = chunk[:length]
            self._sum_into(values, files, first + place, changes)
            if stream:
                stream.add_to(values, origin + place)
            tally.overflows += self._overflows(values)
            begin, place = place * self._width, place + length
            store = encode_noisy_into if stream else encode_into
            store(out[begin : place * self._width], values, self.dtype)
        if self.noise and start == 0:
            tally.add(self._survived(files, out, std, changes))
        return tally

    def _overflows(self, values: Float32) -> int:
        if self.dtype != "F16":
            return 0
        return int(np.count_nonzero((np.abs(values) >= _F16_INFINITE) & np.isfinite(values)))

    def _std(self, files: SourceFiles) -> float:
        tensor, weight = self.terms[0][0].tensor, self.terms[0][1]
        return files.stds[tensor] * abs(weight)

    def _sum_into(self, values: Float32, files: SourceFiles, start: int, changes: list[LowRankRows]) -> None:
        """The blend's elements from ``start`` on, before noise."""
        for number, (part, weight) in enumerate(self.terms):
            dtype = part.tensor.dtype
            raw = scratch.raw(tensor_nbytes(dtype, (len(values),)))
            part.read_into(files, tensor_nbytes(dtype, (start,)), raw)
            term = values if number == 0 else scratch.term[: len(values)]
            decode_into(term, raw, dtype)
            if weight != 1.0:
                term *= np.float32(weight)
            if number:
                values += term
        for change in changes:
            change.add_to(values, start)

    def _survived(self, files: SourceFiles, out: memoryview, std: float, changes: list[LowRankRows]) -> Tally:
        """What is left of the noise after rounding, judged on the first elements."""
        count = min(len(out) // self._width, _JUDGED_ELEMENTS)
        values = np.empty(count, np.float32)
        self._sum_into(values, files, 0, changes)
        stored = decode(out[: count * self._width], self.dtype)
        difference = np.where(np.isfinite(stored), stored - values, 0).astype(np.float64)
        # No BLAS here: its threads spin while they wait, and would take the cores from ours.
        squares = float(np.square(difference).sum()) / std**2 if std else 0.0
        return Tally(elements=count, squares=squares)


class Values(Piece):
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

    @property
    def grain(self) -> int:
        """The whole run, because a part of it costs as much."""
        return self.nbytes

    def fill(self, files: SourceFiles, start: int, out: memoryview) -> Tally | None:
        """Compute the elements and keep those asked for."""
        out[:] = encode(self.values(files), self.dtype)[start : start + len(out)]
        return None


def copy_of(tensor: StoredTensor, dtype: str) -> Piece:
    """The whole of ``tensor`` as ``dtype``."""
    return piece_of(whole(tensor), dtype)


def piece_of(
    run: Run, dtype: str, noise: Noise | None = None, weight: float = 1.0, changes: tuple[LowRank, ...] = ()
) -> Piece:
    """The cheapest piece that yields ``run`` as ``dtype``.

    It is changed by ``changes`` of the whole tensor, and multiplied by ``weight``. Raises
    ``CheckpointError`` when the tensor cannot be cast or take noise.
    """
    tensor = run.tensor
    if noise is None and dtype == tensor.dtype and weight == 1.0 and not changes:
        return Copy(run)
    if tensor.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"tensor {tensor.name!r} has dtype {tensor.dtype}, which is quantised or no float:"
            " it can be copied, not changed",
            "upcycle the unquantised checkpoint, or pass --noise 0 --dtype auto",
            path=tensor.path,
        )
    return Blend(((run, weight),), dtype, noise, tuple(c.times(weight) for c in changes))


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
