"""Runs of elements inside stored tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeify.checkpoint.header import StoredTensor, tensor_nbytes

if TYPE_CHECKING:
    from moeify.checkpoint.files import SourceFiles

__all__ = ["Slice", "rows_of"]


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


def rows_of(stored: StoredTensor, name: str, first: int, count: int) -> StoredTensor:
    """``count`` rows of a stored tensor, from row ``first`` on, as a tensor of their own."""
    row = stored.nbytes // max(stored.shape[0], 1)
    shape = (count, *stored.shape[1:])
    start = stored.start + first * row
    return StoredTensor(name, stored.dtype, shape, stored.path, start, count * row)
