"""Markdown from values that files hold: nothing in them can break out of its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_MOST_CHARACTERS = 400
_ENTITIES = (
    ("&", "&amp;"),
    ("<", "&lt;"),
    (">", "&gt;"),
    ("|", "&#124;"),
    ("[", "&#91;"),
    ("]", "&#93;"),
    ("*", "&#42;"),
)


def inline(text: object) -> str:
    """Text from a file that cannot break out of a line or table cell, become HTML or a link."""
    printable = "".join(c if c.isprintable() else " " for c in str(text))[:_MOST_CHARACTERS]
    for character, entity in _ENTITIES:
        printable = printable.replace(character, entity)
    return printable.replace("`", "'")


def table(cells: Iterable[tuple[str, ...]], head: tuple[str, ...] = ("", "")) -> str:
    """A table with as many columns as ``head``."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(inline, row))} |" for row in cells)])


def rows(values: dict[str, Any], hidden: frozenset[str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Plain values, one level of nesting included; long lists by their length."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if key in hidden or value is None:
            continue
        if isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, float):
            yield name, f"{value:.4g}"
        elif isinstance(value, int):
            yield name, f"{value:,}" if value >= 10_000 else str(value)
        elif isinstance(value, str):
            yield name, value
        elif isinstance(value, list):
            short = len(value) <= 8 and all(isinstance(item, str | int | float) for item in value)
            yield name, ", ".join(map(str, value)) if short else f"{len(value)} values"
        elif isinstance(value, dict) and not prefix:
            yield from list(rows(value, hidden, f"{key} "))[:12]
