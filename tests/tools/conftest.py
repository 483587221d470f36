"""Dense checkpoints and what `moeify upcycle` makes of them, once for all tests of a file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

import moeify

from ..real.hub_shapes import bert_base_uncased_like, gpt2_like, qwen_like

WRITERS: dict[str, Callable[[Path], Path]] = {
    "bert": bert_base_uncased_like,
    "gpt2": gpt2_like,
    "qwen2": lambda folder: qwen_like(folder, "qwen2", dtype="float32"),
    "qwen3": lambda folder: qwen_like(folder, "qwen3", dtype="float32"),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The dense folder and the mixture of four exact copies, by family."""
    root = tmp_path_factory.mktemp("tools")

    def build(family: str) -> tuple[Path, Path]:
        dense, moe = root / family, root / f"{family}-moe"
        if not moe.exists():
            WRITERS[family](dense)
            moeify.upcycle(dense, moe, num_experts=4, noise=0.0)
        return dense, moe

    return build


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense BERT with the head of a classifier."""
    folder = tmp_path_factory.mktemp("classifier") / "dense"
    bert = bert_base_uncased_like(folder.with_name("bert"))
    transformers.set_seed(0)
    model = transformers.BertForSequenceClassification.from_pretrained(bert, num_labels=2)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder
