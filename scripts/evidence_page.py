"""Writes the tables of docs/measured/evidence.md from the .json files beside it; --check fails when one is stale.

What stands between the tables is written by hand.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drawing import DOCS, write_or_check
from evidence_tables import (
    decoder_budgets,
    decoder_domains,
    decoder_rates,
    decoder_routing,
    decoders,
    encoders,
    head_start,
    head_start_differences,
    pictures,
    read,
    recovery,
    reported,
)

FOLDER = DOCS / "measured"
Rows = Callable[..., Iterator[str]]
DECODERS: tuple[Rows, ...] = (decoders, decoder_budgets, decoder_domains, decoder_routing, decoder_rates)
# Block and picture: their file, the base they are about, what its runs are counted in, tables.
BLOCKS: dict[str, tuple[str, str | None, str, tuple[Rows, ...]]] = {
    "decoders-gpt2": ("decoders", "gpt2", "tokens", DECODERS),
    "decoders-qwen3": ("decoders", "qwen3", "tokens", DECODERS),
    "head_start": ("head_start", "gpt2", "tokens", (head_start, head_start_differences)),
    "encoders": ("encoders", None, "pairs", (encoders,)),
    "recovery": ("recovery", "gpt2", "tokens", (recovery,)),
}
MARKS = re.compile(r"(<!-- (\S+): made by scripts/evidence_page\.py -->\n).*?(<!-- end -->)", re.S)


def block(name: str, folder: Path) -> str:
    """What was measured so far: how much, a picture and tables."""
    file, base, size, tables = BLOCKS[name]
    runs = read(folder / f"{file}.json")
    arms = reported(runs, size, base)
    if not arms:
        return "Not measured yet.\n"
    seeds, first = max(map(len, arms.values())), next(iter(arms.values()))[0]
    parts = [f"{first[size]:,} {size} a run, {seeds} seed{'s' * (seeds > 1)}."]
    title, _, _, drawn = pictures(folder)[name]
    if any(drawn.values()):
        parts.append(f"![{title}]({name}.svg)")
    for table in tables:
        rows = list(table(runs) if base is None else table(runs, base))
        parts += ["\n".join(rows)] if len(rows) > 2 else []
    return "\n\n".join(parts) + "\n"


def filled(text: str) -> str:
    """The page with the tables of today."""

    def fill(found: Any) -> str:
        return f"{found[1]}{block(found[2], FOLDER)}{found[3]}"

    return MARKS.sub(fill, text)


def main() -> int:
    """Write or check the page."""
    return write_or_check({"measured/evidence.md": filled((FOLDER / "evidence.md").read_text(encoding="utf-8"))})


if __name__ == "__main__":
    raise SystemExit(main())
