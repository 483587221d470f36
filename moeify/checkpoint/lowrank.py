"""Low-rank changes to a stored matrix, added a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moeify.checkpoint.arithmetic import Float32
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.gather import Index, neurons
from moeify.checkpoint.header import StoredTensor
from moeify.checkpoint.slices import whole


@dataclass(frozen=True, slots=True)
class LowRank:
    """``scale`` x B A, with ``up`` B [out, r] and ``down`` A [r, in] (LoRA, arXiv 2106.09685).

    It changes a matrix [out, in], or one stored as [in, out] where ``transposed``; of the stored
    one only ``index`` along ``axis`` where there is an index.
    """

    up: StoredTensor
    down: StoredTensor
    scale: float
    transposed: bool = False
    index: Index | None = None
    axis: int = 0

    def sources(self) -> Iterator[StoredTensor]:
        """The tensors that are read."""
        yield self.down
        yield self.up

    def times(self, weight: float) -> LowRank:
        """The same change ``weight`` times."""
        return replace(self, scale=self.scale * weight)

    def at(self, index: Index, axis: int) -> LowRank:
        """The change to the stored matrix at ``index`` along ``axis``."""
        return replace(self, index=index, axis=axis)

    def turned(self) -> LowRank:
        """The change to the stored matrix with its axes exchanged."""
        return replace(self, transposed=not self.transposed, axis=1 - self.axis)

    def open(self, files: SourceFiles) -> LowRankRows:
        """Ready to be added: one factor in memory, the other read as it is needed."""
        return LowRankRows(self, files)


class LowRankRows:
    """The rows of one change, computed as they are asked for."""

    def __init__(self, change: LowRank, files: SourceFiles) -> None:
        self._change, self._files = change, files
        factor = _matrix(files, change.up if change.transposed else change.down)
        right = factor.T if change.transposed else factor
        columns = change.index if change.axis == 1 else None
        self._right = np.ascontiguousarray(right if columns is None else right[:, columns])
        self._down = _matrix(files, change.down) if change.transposed else None

    def add_to(self, values: Float32, start: int) -> None:
        """Add elements ``start`` .. ``start + len(values)`` of the change, in row-major order."""
        width = self._right.shape[1]
        first, last = start // width, -(-(start + len(values)) // width)
        rows = (self._left(first, last) @ self._right).reshape(-1)
        rows *= np.float32(self._change.scale)
        values += rows[start - first * width :][: len(values)]

    def _left(self, first: int, last: int) -> Float32:
        change = self._change
        height = change.down.shape[1] if change.transposed else change.up.shape[0]
        rows = np.arange(height) if change.index is None or change.axis else change.index
        if self._down is not None:
            return np.ascontiguousarray(self._down[:, rows[first:last]].T)
        up = change.up
        part = neurons(whole(up), up.shape, 0, rows[first:last])
        return self._files.values(part).reshape(-1, up.shape[1])


def _matrix(files: SourceFiles, tensor: StoredTensor) -> Float32:
    return files.values(whole(tensor)).reshape(tensor.shape)
