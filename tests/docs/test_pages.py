"""What pages of the documentation say can be followed: links, commands, figures, and the tree of errors."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import moeify.errors

from ..cli.commands import FLAGS, ROOT
from .pages import DOCS, FENCED, REPOSITORY, USER_PAGES, command_lines

MEASURED = DOCS / "measured"
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CHANGELOG.md",
    *DOCS.rglob("*.md"),
    *REPOSITORY.glob("examples/*/*.md"),
]


def anchors(page: Path) -> set[str]:
    """What a link into ``page`` may end in, as GitHub makes it of headings."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text("utf-8")), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


def broken(page: Path) -> Iterator[str]:
    for target in re.findall(r"!?\[[^]]*\]\(([^)\s]+)\)", FENCED.sub("", page.read_text("utf-8"))):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield f"{page.name}: {target}"


def test_every_link_leads_somewhere() -> None:
    assert [link for page in PAGES for link in broken(page)] == []
    assert sum(page.read_text("utf-8").count("](") for page in PAGES) > 200


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines of moeify in a page's blocks, without prompts and comments."""
    for line in command_lines(page):
        words = shlex.split(line.words, comments=True) if "moeify " in line.words else []
        if words[:3] == ["accelerate", "launch", "--use_fsdp"] or words[:1] == ["torchrun"]:
            words = words[words.index("-m") + 1 :] if "-m" in words else []
        if words[:1] == ["moeify"] and len(words) > 1 and words[1] in FLAGS:
            yield words[1:]


def test_every_command_line_is_understood() -> None:
    wrong, seen = [], 0
    for page in PAGES:
        for name, *arguments in commands(page):
            seen += 1
            try:
                ROOT.commands[name].make_context(name, arguments)
            except Exception as error:  # whatever the parser says of it
                wrong.append(f"{page.name}: moeify {name} {shlex.join(arguments)}: {error}")
    assert wrong == []
    assert seen > 80


def test_the_tree_of_errors_is_that_of_the_module() -> None:
    tree = (moeify.errors.__doc__ or "").strip().split("\n\n", 1)[1]
    assert tree in (DOCS / "errors.md").read_text("utf-8")
    named = set(re.findall(r"\w+Error", tree))
    assert named == {name for name in vars(moeify.errors) if name.endswith("Error")}


def test_user_pages_stay_short() -> None:
    words = {page.name: len(re.findall(r"\S*\w\S*", page.read_text("utf-8"))) for page in USER_PAGES}
    assert sum(words.values()) <= 15_000, words
    assert len((REPOSITORY / "README.md").read_text("utf-8").splitlines()) < 120


def numbers(found: object) -> Iterator[float]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        for value in found:
            yield from numbers(value)
    elif isinstance(found, int | float):
        yield found


@pytest.mark.parametrize(
    ("name", "page"), [("fit", "fit"), ("headroom", "training"), ("pruning", "pruning"), ("domains", "domains")]
)
def test_figures_draw_what_tables_say(name: str, page: str) -> None:
    text = (MEASURED / f"{page}.md").read_text("utf-8")
    found = json.loads((MEASURED / f"{name}.json").read_text("utf-8"))
    said = {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)}
    assert [number for number in numbers(found) if number not in said] == []
    assert found["command"].split(" --")[0].split(" WORK")[0].split(" CORPORA")[0] in text
    assert f"]({name}.svg)" in text
