"""Every Python block of the documentation runs, as a reader runs it; tests/extending has those of extending.md."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moeify
import moeify.demo

from ..real.hub_shapes import sentence_encoder_like

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
DEMO = Path(moeify.demo.__file__).parent
README = "/README.md"
PAGES = {
    page.name if page.parent == DOCS else README: page.read_text("utf-8")
    for page in (REPOSITORY / "README.md", *sorted(DOCS.glob("*.md")))
    if page.name != "extending.md" and "```python" in page.read_text("utf-8")
}


def blocks() -> Iterator[Any]:
    for page, text in PAGES.items():
        title = ""
        for heading, code in re.findall(r"^##+ (.+?)$|^```python\n(.+?)^```", text, re.M | re.S):
            title = heading or title
            if code:
                yield pytest.param(page, code, id=f"{page}: {title}")


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    """A working directory that holds what the pages' first commands write."""
    place = tmp_path_factory.mktemp("docs")
    for family in ("bert", "gpt2", "qwen3"):
        (place / f"{family}-moe").symlink_to(pair(family)[1])
    for name in ("base", "code", "german", "logs"):
        (place / name).symlink_to(pair("gpt2")[0])
    (place / "my-moe").symlink_to(pair("gpt2")[1])
    (place / "demo-gpt2").symlink_to(DEMO / "gpt2")
    moeify.upcycle(place / "demo-gpt2", place / "demo-moe", num_experts=4, noise=0.0)
    moeify.upcycle(sentence_encoder_like(place / "encoder"), place / "encoder-moe", num_experts=4)
    return place


@pytest.mark.parametrize(("page", "code"), list(blocks()))
def test_block_runs(page, code, folder, monkeypatch):
    place = folder / page.strip("/").replace(".md", "")
    place.mkdir(exist_ok=True)
    for name in os.listdir(folder):
        if (folder / name / "config.json").exists() and not (place / name).exists():
            (place / name).symlink_to(folder / name)
    if page == README:
        (place / "gpt2-moe").unlink(missing_ok=True)  # which its block writes
    monkeypatch.chdir(place)
    exec(compile(code, page, "exec"), {"__name__": "block"})


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("use-it-in.md", ("sentence_transformers", "peft", "trl", "pipeline", "Trainer", "torch.compile")),
        ("training.md", ("train_only", "RoutingMonitor", "quantize_experts", "MoeProjector", "modules_to_save")),
        ("after-warmup.md", ("Trainer", "output_router_logits", "RoutingMonitor")),
    ],
)
def test_a_page_has_a_block_for_everything(page, words):
    code = "".join(block.values[1] for block in blocks() if block.values[0] == page)
    assert not [word for word in words if word not in code]
