"""The rows of a local file with one JSON object a line, read one by one where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeify.errors import DatasetError

_CHUNK = 1 << 24


class JsonLines:
    """Rows of a file in any order; memory holds one of them, and where the others begin.

    Tables want one type for a column in all rows. Here rows may differ in columns and types.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.starts = path, _starts(path)

    @classmethod
    def of(cls, path: Path) -> JsonLines | None:
        """The rows of ``path``; None where its first line is no JSON object."""
        with open(path, "rb") as file:
            first = next((line for line in file if line.strip()), b"")
        try:
            return cls(path) if isinstance(json.loads(first, strict=False), dict) else None
        except (ValueError, RecursionError):
            return None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows(self.starts)

    def shuffle(self, seed: int) -> Iterator[dict[str, Any]]:
        """All rows, in the order in which datasets shuffles as many."""
        return self._rows(self.starts[np.random.default_rng(seed).permutation(len(self.starts))])

    def _rows(self, starts: Iterable[int]) -> Iterator[dict[str, Any]]:
        with open(self.path, "rb") as file:
            for start in starts:
                file.seek(start)
                line = file.readline()
                if line.strip():
                    yield self._row(line, int(start))

    def _row(self, line: bytes, start: int) -> dict[str, Any]:
        try:
            row = json.loads(line, strict=False)
            if isinstance(row, dict):
                return row
            reason = f"a row is an object, not {type(row).__name__}"
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError as error:  # also what is no UTF-8
            reason = str(error)
        number = 1 + int(np.searchsorted(self.starts, start))
        raise DatasetError(
            f"cannot read {self.path.name}: row {number}: {reason}",
            "mend that line: each is a JSON object of its own, in UTF-8",
        )


def _starts(path: Path) -> NDArray[np.int64]:
    """Where the lines of a file begin, without empty ones."""
    ends, size = [np.array([-1])], 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            ends.append(size + np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")))
            size += len(chunk)
    starts = np.concatenate(ends) + 1
    return starts[np.diff(starts, append=size + 1) > 1]
