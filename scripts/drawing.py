"""What drawings of docs/ are made of: one look, light and dark, and no font or file from outside."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
STYLE = """\
text { font: 14px system-ui, sans-serif; fill: #24292f; } .small { font-size: 12px; } .mid { text-anchor: middle; }
.end { text-anchor: end; } .bold { font-weight: 600; }
.line { stroke: #6e7781; fill: none; } .copy { fill: none; stroke: #8c959f; } .router { fill: none; stroke: #24292f; }
.grid { stroke: #d8dee4; } .soft { fill: #eaeef2; }
.s0 { fill: #0969da; } .s1 { fill: #1a7f37; } .s2 { fill: #bc4c00; } .s3 { fill: #8250df; } .on { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .line { stroke: #8d96a0; } .copy { stroke: #6e7681; } .router { stroke: #e6edf3; }
.grid { stroke: #30363d; } .soft { fill: #21262d; }
.s0 { fill: #1f6feb; } .s1 { fill: #238636; } .s2 { fill: #bd561d; } .s3 { fill: #8957e5; } .on { fill: #ffffff; } }"""


def svg(title: str, width: int, height: int, parts: Iterable[str]) -> str:
    """A whole file of ``width`` by ``height`` units; ``title`` is read out in place of it."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">',
        f"<title>{title}</title>",
        "<defs><style>",
        STYLE,
        "</style></defs>",
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def text(x: float, y: float, words: str, kind: str = "mid") -> str:
    """Words that begin, or by ``kind`` end or have their middle, at ``x``."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle whose upper left corner is at ``x``, ``y``."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" class="{kind}"/>'


def line(*points: tuple[float, float], kind: str = "line") -> str:
    """A line through ``points``."""
    return f'<polyline points="{" ".join(f"{x:g},{y:g}" for x, y in points)}" class="{kind}"/>'


def arrow(*points: tuple[float, float]) -> str:
    """A line through ``points`` that ends in an arrow head, to the right or downwards."""
    (from_x, _), (x, y) = points[-2:]
    head = ((x - 5, y - 7), (x, y), (x + 5, y - 7)) if from_x == x else ((x - 7, y - 5), (x, y), (x - 7, y + 5))
    return line(*points) + line(*head)


def write_or_check(drawings: Mapping[str, str]) -> int:
    """Write files of docs/, by name, or with --check compare them; the exit code."""
    stale = []
    for name, wanted in drawings.items():
        path = DOCS / name
        if "--check" not in sys.argv[1:]:
            path.write_text(wanted, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != wanted:
            stale.append(name)
    if stale:
        print(f"{', '.join(stale)}: stale; run `make docs`", file=sys.stderr)
    return bool(stale)
