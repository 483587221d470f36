"""Names put into a sentence."""

from __future__ import annotations

from collections.abc import Collection


def some(names: Collection[str], limit: int = 3) -> str:
    """The first few of ``names``, and how many more there are."""
    first = ", ".join(sorted(names)[:limit])
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"
