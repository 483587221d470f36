"""What tables, pictures and pages show: text from files, printable and not too long, and losses by routing."""

from __future__ import annotations

import html
from typing import Any


def shown(text: object, longest: int = 1000) -> str:
    """``text`` without control characters, cut after ``longest`` characters."""
    said = "".join(c if c.isprintable() else "\ufffd" for c in str(text)[: longest + 1])
    return said if len(said) <= longest else f"{said[:longest]}..."


def escaped(text: object) -> str:
    """``text`` as a page holds it."""
    return html.escape(shown(text))


def losses_by_routing(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What routed a text otherwise, and its loss beside the routers'."""
    rows = [
        (name if rule["expert"] is None else f"{name}: expert {rule['expert']}", rule)
        for name, rule in found["rules"].items()
    ]
    if (limit := found["capacity"]) is not None:
        lost = f"{limit['tokens_dropped']:.1%} of tokens, {limit['assignments_dropped']:.1%} of choices left out"
        rows.append((f"capacity {limit['factor']:g}: {lost}", limit))
    return rows
