"""Text from files in pictures and pages: printable, of one line, and not too long."""

from __future__ import annotations

import html


def shown(text: object, longest: int = 1000) -> str:
    """``text`` without control characters, cut after ``longest`` characters."""
    said = "".join(c if c.isprintable() else "\ufffd" for c in str(text)[: longest + 1])
    return said if len(said) <= longest else f"{said[:longest]}..."


def escaped(text: object) -> str:
    """``text`` as a page holds it."""
    return html.escape(shown(text))
