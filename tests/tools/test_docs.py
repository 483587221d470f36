"""Every Python block of docs/use-it-in.md runs, one after the other, as a reader would run it."""

import re
from pathlib import Path

import pytest

import moeify

from ..real.hub_shapes import sentence_encoder_like

PAGE = Path(__file__).resolve().parents[2] / "docs" / "use-it-in.md"
BLOCKS = re.findall(r"^## (.+?)$|^```python\n(.+?)^```", PAGE.read_text(), re.M | re.S)


def blocks():
    title = ""
    for heading, code in BLOCKS:
        title = heading or title
        if code:
            yield pytest.param(code, id=title)


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    """A working directory that holds what the page's first commands write."""
    place = tmp_path_factory.mktemp("docs")
    for family in ("bert", "gpt2", "qwen3"):
        (place / f"{family}-moe").symlink_to(pair(family)[1])
    moeify.upcycle(sentence_encoder_like(place / "encoder"), place / "encoder-moe", num_experts=4)
    return place


@pytest.mark.parametrize("code", list(blocks()))
def test_block_runs(code, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "block"})


def test_the_page_has_a_block_for_every_library():
    code = "".join(code for _, code in BLOCKS)
    for library in ("sentence_transformers", "peft", "trl", "pipeline", "Trainer", "torch.compile"):
        assert library in code
