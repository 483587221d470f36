"""Every Python block of docs/use-it-in.md and docs/training.md runs, as a reader would run it."""

import re
from pathlib import Path

import pytest

import moeify

from ..real.hub_shapes import sentence_encoder_like

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {page: (DOCS / page).read_text() for page in ("use-it-in.md", "training.md")}


def blocks():
    for page, text in PAGES.items():
        title = ""
        for heading, code in re.findall(r"^## (.+?)$|^```python\n(.+?)^```", text, re.M | re.S):
            title = heading or title
            if code:
                yield pytest.param(page, code, id=f"{page}: {title}")


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    """A working directory that holds what the page's first commands write."""
    place = tmp_path_factory.mktemp("docs")
    for family in ("bert", "gpt2", "qwen3"):
        (place / f"{family}-moe").symlink_to(pair(family)[1])
    moeify.upcycle(sentence_encoder_like(place / "encoder"), place / "encoder-moe", num_experts=4)
    return place


@pytest.mark.parametrize(("page", "code"), list(blocks()))
def test_block_runs(page, code, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(code, page, "exec"), {"__name__": "block"})


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("use-it-in.md", ("sentence_transformers", "peft", "trl", "pipeline", "Trainer", "torch.compile")),
        ("training.md", ("train_only", "RoutingMonitor", "quantize_experts", "MoeProjector", "modules_to_save")),
    ],
)
def test_a_page_has_a_block_for_everything(page, words):
    code = "".join(block.values[1] for block in blocks() if block.values[0] == page)
    assert not [word for word in words if word not in code]
