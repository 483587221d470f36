"""Tokenizers as ``AutoTokenizer.save_pretrained`` writes them are read by every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moeify.errors import CheckpointError
from moeify.routing.loading import load_tokenizer
from tests.faults.in_process import moeify
from tests.faults.words import write_tokenizer
from tests.tiny import save_tiny

NO_LIMIT = 1000000000000000019884624838656


def unlimited(folder: Path) -> None:
    """A tokenizer without a limit of its own, loaded and saved by transformers."""
    write_tokenizer(folder, "qwen2")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    assert str(NO_LIMIT) in (folder / "tokenizer_config.json").read_text()


def test_a_tokenizer_without_a_limit_works_everywhere(tmp_path: Path) -> None:
    folder, text = save_tiny(tmp_path / "dense", "qwen2", "Qwen2ForCausalLM"), tmp_path / "text.txt"
    unlimited(folder)
    text.write_text("the cat sat on the mat 1 2 3\n\n" * 60)
    moe, out = tmp_path / "moe", tmp_path / "out"
    small = ("--max-tokens", 200, "--seq-len", 16)
    for line in (
        ("upcycle", folder, moe, "--experts", 4, "--top-k", 2),
        ("verify", folder, moe, "--text", text, "--seq-len", 8),
        ("inspect", moe, "--dataset", text, *small),
        ("warmup", moe, out, "--dataset", text, "--steps", 1, "--seq-len", 16, "--batch", 2),
        ("prune", moe, tmp_path / "pruned", "--keep", 2, "--dataset", text, *small),
    ):
        done = moeify(*line)
        assert done.code in (0, 3), done.text
    assert load_tokenizer(moe).model_max_length == NO_LIMIT


@pytest.mark.parametrize("number", ["9" * 4300, "-" + "9" * 4300])
def test_a_number_as_long_as_can_be(tmp_path: Path, number: str) -> None:
    write_tokenizer(tmp_path, "qwen2")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    text = json.dumps(settings | {"model_max_length": 7, "other": "N"}).replace('"N"', number)
    (tmp_path / "tokenizer_config.json").write_text(text)
    assert isinstance(load_tokenizer(tmp_path), PreTrainedTokenizerFast)
    (tmp_path / "tokenizer_config.json").write_text(text.replace(number, number + "0"))
    with pytest.raises(CheckpointError, match="4301 digits"):
        load_tokenizer(tmp_path)
