"""What is wrong with a checkpoint, as findings that are collected rather than raised."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding: ``kind`` for programs, ``message`` for people."""

    kind: str
    message: str


def numbers(values: Collection[int], unit: str = "") -> str:
    """Sorted numbers with runs shortened: ``layers 0-3, 7``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    listing = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs[:8])
    if len(runs) > 8:
        listing += ", ..."
    return f"{unit}{'' if len(values) == 1 or not unit else 's'} {listing}".strip()


def grouped(names: Iterable[str]) -> dict[str, int]:
    """Tensor names with their numbers replaced by ``*``, and how often each occurs."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = _NUMBER.sub("*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return dict(sorted(counts.items()))


def by_pattern(kind: str, names: Iterable[str], what: str) -> Iterator[Problem]:
    """A problem for each pattern of tensor names: so many of them are ``what``."""
    for pattern, count in grouped(names).items():
        listing = f"{count} tensors {pattern}" if count > 1 else pattern
        yield Problem(kind=kind, message=f"{listing} {'are' if count > 1 else 'is'} {what}")
