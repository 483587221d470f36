"""Writes docs/slices.svg, the drawing of slices; --check fails when it is stale."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

DRAWING = Path(__file__).resolve().parents[1] / "docs" / "slices.svg"
SLICES, COPIES = 4, 4
CHOSEN = (1, 3, 0, 2)
"""The copy that the drawn token visits in each slice."""
WIDTH, HEIGHT, TOP, STEP = 760, 330, 62, 58
STYLE = """\
text { font: 14px system-ui, sans-serif; fill: #24292f; } .small { font-size: 12px; } .mid { text-anchor: middle; }
.line { stroke: #6e7781; fill: none; } .copy { fill: none; stroke: #8c959f; } .router { fill: none; stroke: #24292f; }
.s0 { fill: #0969da; } .s1 { fill: #1a7f37; } .s2 { fill: #bc4c00; } .s3 { fill: #8250df; } .on { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .line { stroke: #8d96a0; } .copy { stroke: #6e7681; } .router { stroke: #e6edf3; }
.s0 { fill: #1f6feb; } .s1 { fill: #238636; } .s2 { fill: #bd561d; } .s3 { fill: #8957e5; } .on { fill: #ffffff; } }"""


def drawing() -> str:
    """The whole file."""
    title = f"A feed-forward network cut into {SLICES} slices, each with {COPIES} copies and a router of its own"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
        f"<title>{title}</title>",
        "<defs><style>",
        STYLE,
        "</style></defs>",
        *_dense(),
        *_mixture(),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: int, y: int, words: str, kind: str = "mid") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def _box(x: int, y: int, width: int, height: int, kind: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" class="{kind}"/>'


def _line(*points: tuple[int, int]) -> str:
    return f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" class="line"/>'


def _dense() -> Iterator[str]:
    """The network, its neurons from top to bottom."""
    yield _text(105, 24, "dense: F neurons")
    for number in range(SLICES):
        yield _box(60, TOP + number * STEP, 90, STEP - 2, f"s{number}")
        yield _text(105, TOP + number * STEP + 33, f"F / {SLICES}", "mid on")
    bottom = TOP + SLICES * STEP
    yield _text(105, bottom + 26, "y = F(x)")
    yield _line((172, TOP + SLICES * STEP // 2), (204, TOP + SLICES * STEP // 2))
    middle = TOP + SLICES * STEP // 2
    yield _line((197, middle - 5), (204, middle), (197, middle + 5))


def _mixture() -> Iterator[str]:
    """A row for each slice: its router and its copies, of which one is chosen."""
    yield _text(265, 24, "a router each")
    yield _text(475, 24, f"{COPIES} copies each, of which a token visits one")
    for number, chosen in enumerate(CHOSEN):
        y = TOP + number * STEP
        yield _box(225, y + 8, 80, STEP - 18, "router")
        yield _text(265, y + 33, "softmax")
        yield _line((305, y + STEP // 2 - 1), (325, y + STEP // 2 - 1))
        for copy in range(COPIES):
            on = copy == chosen
            yield _box(330 + copy * 74, y + 8, 66, STEP - 18, f"s{number}" if on else "copy")
            words = "w = 1" if on else f"{number * COPIES + copy}"
            yield _text(363 + copy * 74, y + 33, words, "mid on" if on else "mid small")
        yield _line((622, y + STEP // 2 - 1), (648, y + STEP // 2 - 1), (648, TOP + SLICES * STEP // 2))
    middle = TOP + SLICES * STEP // 2
    yield _line((648, middle), (672, middle))
    yield _text(710, middle + 5, "sum = y")
    yield _text(
        475, TOP + SLICES * STEP + 26, f"one choice in each slice: {COPIES**SLICES} combinations, the cost of F"
    )


def main() -> int:
    """Write or check the drawing."""
    text = drawing()
    if "--check" not in sys.argv:
        DRAWING.write_text(text, encoding="utf-8")
        return 0
    if DRAWING.exists() and DRAWING.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DRAWING.name} is stale: run make docs")
    return 1


if __name__ == "__main__":
    sys.exit(main())
