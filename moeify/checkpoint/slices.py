"""Runs of elements inside stored tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from moeify.checkpoint.header import StoredTensor, tensor_nbytes

if TYPE_CHECKING:
    from moeify.checkpoint.files import SourceFiles


class Run(Protocol):
    """Elements of one stored tensor, in an order of their own."""

    @property
    def tensor(self) -> StoredTensor:
        """What is read."""

    @property
    def start(self) -> int:
        """Where in the tensor they begin."""

    @property
    def elements(self) -> int:
        """How many there are."""

    def read_into(self, files: SourceFiles, start: int, out: memoryview) -> None:
        """Fill ``out`` with their bytes from ``start`` on."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive elements of a stored tensor, from element ``start`` on."""

    tensor: StoredTensor
    start: int
    elements: int

    @property
    def byte_start(self) -> int:
        """Position of the first byte in the file."""
        return self.tensor.start + tensor_nbytes(self.tensor.dtype, (self.start,))

    @property
    def nbytes(self) -> int:
        """Bytes from the first one to the last."""
        return tensor_nbytes(self.tensor.dtype, (self.elements,))

    def read_into(self, files: SourceFiles, start: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``start`` on."""
        files.read_into(out, self.tensor.path, self.byte_start + start)


def run_nbytes(run: Run) -> int:
    """Bytes of a run's elements."""
    return tensor_nbytes(run.tensor.dtype, (run.elements,))


def whole(tensor: StoredTensor) -> Slice:
    """All elements of ``tensor``."""
    return Slice(tensor, 0, tensor.elements)


def rows_of(stored: StoredTensor, name: str, first: int, count: int) -> StoredTensor:
    """``count`` rows of a stored tensor, from row ``first`` on, as a tensor of their own."""
    row = stored.nbytes // max(stored.shape[0], 1)
    shape = (count, *stored.shape[1:])
    start = stored.start + first * row
    return StoredTensor(name, stored.dtype, shape, stored.path, start, count * row)
