"""Source files read by position and scanned, by several threads at once."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moeify.checkpoint.arithmetic import Float32, decode, is_finite
from moeify.checkpoint.copying import unreadable
from moeify.checkpoint.header import ZEROS, StoredTensor, tensor_nbytes
from moeify.checkpoint.regular import open_regular
from moeify.checkpoint.slices import Run
from moeify.errors import CheckpointError

_SCAN_BYTES = 1 << 17


class _Kept(threading.local):
    """The run whose bytes a thread keeps, and the bytes."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.data = memoryview(b"")
        self._held = memoryview(b"")

    def room(self, nbytes: int) -> memoryview:
        """The ``data`` of that length, to be filled."""
        if len(self._held) < nbytes:
            self._held = memoryview(bytearray(nbytes))
        self.data = self._held[:nbytes]
        return self.data


class SourceFiles:
    """Open source files, read by position so that threads and processes share them.

    ``handles`` are those that are open already; ``stds`` holds the standard deviation of every
    tensor that noise is added to; ``kept`` is what runs that are dear to read keep of the last one.
    """

    def __init__(self, handles: Mapping[Path, int] | None = None) -> None:
        self.handles = dict(handles or {})
        self._states: dict[Path, tuple[int, int]] = {}
        self.stds: dict[StoredTensor, float] = {}
        self.kept = _Kept()
        self._means: dict[StoredTensor, float] = {}

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles.values():
            os.close(handle)
        self.handles.clear()

    def handle(self, path: Path) -> int:
        """The file descriptor of ``path``, opened once; call it from one thread."""
        known = self.handles.get(path)
        if known is not None:
            return known
        if path == ZEROS:
            self.handles[path] = handle = os.open(path, os.O_RDONLY)
        else:
            self.handles[path] = handle = open_regular(path)[0]
            self._states[path] = _state(handle)
        return handle

    def check_unchanged(self) -> None:
        """Raise ``CheckpointError`` where somebody wrote to a file since it was opened."""
        for path, state in self._states.items():
            if _state(self.handles[path]) != state:
                raise CheckpointError(
                    f"{path.name} was changed while it was read",
                    "wait until nobody writes to the source, then run the command again",
                    path=path,
                )

    def read(self, path: Path, start: int, nbytes: int) -> bytearray:
        """Exactly ``nbytes`` bytes from ``start``; raises ``CheckpointError`` if they are gone."""
        found = bytearray(nbytes)
        self.read_into(memoryview(found), path, start)
        return found

    def read_into(self, buffer: memoryview, path: Path, start: int) -> None:
        """Fill ``buffer`` from ``start`` on; raises ``CheckpointError`` as ``read`` does."""
        while True:
            try:
                done = os.preadv(self.handle(path), [buffer], start)
            except OSError as error:
                raise unreadable(path, error) from error
            if done == len(buffer):
                return
            if not done:
                raise CheckpointError(f"{path.name} shrank while it was read", path=path)
            buffer, start = buffer[done:], start + done

    def values(self, run: Run, start: int = 0, count: int | None = None) -> Float32:
        """Elements of ``run`` from ``start`` on as float32: ``count`` of them, or all."""
        dtype = run.tensor.dtype
        length = run.elements - start if count is None else count
        raw = memoryview(bytearray(tensor_nbytes(dtype, (length,))))
        run.read_into(self, tensor_nbytes(dtype, (start,)), raw)
        return decode(raw, dtype)

    def scan(self, tensor: StoredTensor) -> float:
        """Standard deviation of ``tensor`` in one pass over blocks, its values checked.

        Raises ``CheckpointError`` when it holds NaN or infinity.
        """
        total = squares = 0.0
        for start in range(0, tensor.nbytes, _SCAN_BYTES):
            raw = self.read(tensor.path, tensor.start + start, min(_SCAN_BYTES, tensor.nbytes - start))
            values = decode(raw, tensor.dtype).astype(np.float64)
            total += float(values.sum())
            squares += float(np.einsum("i,i->", values, values))  # no BLAS: its threads would spin
            if not math.isfinite(squares) and not is_finite(raw, tensor.dtype):
                raise _not_finite(tensor)
        mean = total / max(tensor.elements, 1)
        return math.sqrt(max(squares / max(tensor.elements, 1) - mean * mean, 0.0))

    def mean(self, tensor: StoredTensor) -> float:
        """Mean of ``tensor``, read once."""
        if tensor not in self._means:
            total = 0.0
            for start in range(0, tensor.nbytes, _SCAN_BYTES):
                raw = self.read(tensor.path, tensor.start + start, min(_SCAN_BYTES, tensor.nbytes - start))
                total += float(decode(raw, tensor.dtype).astype(np.float64).sum())
            self._means[tensor] = total / max(tensor.elements, 1)
        return self._means[tensor]

    def is_zero(self, tensor: StoredTensor) -> bool:
        """Whether every byte of ``tensor`` is zero."""
        for start in range(0, tensor.nbytes, _SCAN_BYTES):
            if any(self.read(tensor.path, tensor.start + start, min(_SCAN_BYTES, tensor.nbytes - start))):
                return False
        return True

    def same(self, one: StoredTensor, other: StoredTensor) -> bool:
        """Whether two tensors are alike in dtype, shape and every byte."""
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        for start in range(0, one.nbytes, _SCAN_BYTES):
            nbytes = min(_SCAN_BYTES, one.nbytes - start)
            if self.read(one.path, one.start + start, nbytes) != self.read(other.path, other.start + start, nbytes):
                return False
        return True

    def check_finite(self, tensor: StoredTensor) -> None:
        """Raise ``CheckpointError`` when ``tensor`` holds NaN or infinity."""
        for start in range(0, tensor.nbytes, _SCAN_BYTES):
            nbytes = min(_SCAN_BYTES, tensor.nbytes - start)
            if not is_finite(self.read(tensor.path, tensor.start + start, nbytes), tensor.dtype):
                raise _not_finite(tensor)


def _state(handle: int) -> tuple[int, int]:
    """Size and time of the last change of content."""
    status = os.fstat(handle)
    return status.st_size, status.st_mtime_ns


def _not_finite(tensor: StoredTensor) -> CheckpointError:
    """The error for a weight that no arithmetic can use."""
    return CheckpointError(
        f"tensor {tensor.name!r} in {tensor.path.name} holds NaN or infinity",
        "the checkpoint is damaged or its training diverged; use another one",
        path=tensor.path,
    )
