"""Rows of files with one JSON object a line, whose lines datasets reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from moeify.errors import DatasetError


class JsonLines:
    """Rows that may differ in columns and types, where tables want one type for a column.

    ``lines`` is a dataset of one column, text, streamed or not.
    """

    column_names = None

    def __init__(self, lines: Any, name: str) -> None:
        self.lines, self.name = lines, name
        self.counted = hasattr(lines, "__len__")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows(enumerate(line["text"] for line in self.lines))

    def shuffle(self, seed: int, **options: Any) -> Iterator[dict[str, Any]]:
        """All rows, in the order in which datasets shuffles as many."""
        if not self.counted:
            return self._rows((None, line["text"]) for line in self.lines.shuffle(seed=seed, **options))
        order = np.random.default_rng(seed).permutation(len(self.lines))
        return self._rows((number, self.lines[number]["text"]) for number in map(int, order))

    def _rows(self, lines: Iterable[tuple[int | None, str]]) -> Iterator[dict[str, Any]]:
        return (self._row(line, number) for number, line in lines if line.strip())

    def _row(self, line: str, number: int | None) -> dict[str, Any]:
        try:
            row = json.loads(line, strict=False)
            if isinstance(row, dict):
                return row
            reason = f"a row is an object, not {type(row).__name__}"
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError as error:
            reason = str(error)
        place = "a row" if number is None else f"row {number + 1}"
        raise DatasetError(
            f"cannot read {self.name}: {place}: {reason}", "mend that line: each is a JSON object of its own, in UTF-8"
        )


def is_json_line(line: str) -> bool:
    """Whether ``line`` is a JSON object of its own."""
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line, strict=False), dict)
    except (ValueError, RecursionError):
        return False
