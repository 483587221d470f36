"""A tokenizer may be larger than its model, as long as the text does without the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import moeify
from moeify.errors import DatasetError
from moeify.routing.config import DataConfig
from moeify.routing.data import read_blocks, tokenizer_for

from ..warming.mixtures import FAST, demo_mixture

TEXT = Path(moeify.__file__).parent / "demo" / "text.jsonl"
DATA: dict[str, Any] = {"dataset": str(TEXT), "seq_len": 32}
COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "inspect": lambda moe, _: moeify.inspect(moe, **DATA, max_tokens=500),
    "warmup": lambda moe, out: moeify.warmup(moe, out, **{**FAST, **DATA, "steps": 0}),
    "prune": lambda moe, out: moeify.prune(moe, out, keep=2, **DATA, max_tokens=500),
    "verify": lambda moe, _: moeify.verify(moe, moe, text=TEXT, batch=8, seq_len=64),
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_mixture(tmp_path_factory.mktemp("mixture") / "moe")


def larger(mixture: Path, folder: Path, **added: Any) -> Path:
    """The mixture with a tokenizer that has more tokens, as transformers writes it."""
    shutil.copytree(mixture, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_special_tokens(added)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    assert len(tokenizer_for(folder)) > 2048
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_tokens_beyond_the_model_are_one_sentence(mixture: Path, tmp_path: Path, command) -> None:
    folder = larger(mixture, tmp_path / "moe", extra_special_tokens=["of the", "in the"])
    with pytest.raises(DatasetError) as caught:
        COMMANDS[command](folder, tmp_path / "out")
    assert "a tokenizer of 2050 tokens makes token 20" in caught.value.message
    assert "the model knows 2048 tokens" in caught.value.message
    assert "2050 rows" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_tokens_that_no_text_has_do_no_harm(mixture: Path, tmp_path: Path, command) -> None:
    unused = {"pad_token": "<|pad|>", "extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    folder = larger(mixture, tmp_path / "moe", **unused)
    COMMANDS[command](folder, tmp_path / "out")


def test_padding_is_a_token_of_the_model(mixture: Path, tmp_path: Path) -> None:
    folder = larger(mixture, tmp_path / "moe", pad_token="<|pad|>")
    data, tokenizer = DataConfig(dataset=str(TEXT)), tokenizer_for(folder)
    blocks = read_blocks(data, tokenizer, 32, 1000, 2048)
    assert blocks.lengths.min() < 32
    assert blocks.input_ids.max() < 2048
    assert read_blocks(data, tokenizer, 32, 1000).input_ids[-1, -1] == tokenizer.pad_token_id
