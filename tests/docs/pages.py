"""The pages of the documentation, and the command lines in their blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
FENCED = re.compile(r"^```.*?^```", re.M | re.S)
NOT_FOR_USERS = {"api.md", "cli.md", "matrix.md", "models.md", "architecture.md", "contributing.md"}
"""Pages that are made from code, and those for developers."""
USER_PAGES = [REPOSITORY / "README.md", *sorted(p for p in DOCS.glob("*.md") if p.name not in NOT_FOR_USERS)]


class Line(NamedTuple):
    """A command line of a page, and what the page shows of its output."""

    words: str
    output: list[str]


def command_lines(page: Path) -> Iterator[Line]:
    """The command lines of a page's bash and console blocks, without prompts and continued ones in one."""
    for kind, block in re.findall(r"^```(bash|console)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        lines = block.replace("\\\n", " ").splitlines()
        if kind == "bash":
            yield from (Line(words, []) for words in lines if words)
            continue
        starts = [place for place, words in enumerate(lines) if words.startswith("$ ")]
        for start, end in pairwise([*starts, len(lines)]):
            yield Line(lines[start].removeprefix("$ "), lines[start + 1 : end])
