"""sentence-transformers loads an upcycled sentence encoder and computes the same embeddings."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import moeify

from ..real.checkpoints import minilm

SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays an instrument with strings.",
    "The stock market fell sharply on Monday.",
    "",
    "word " * 300,
]


@pytest.mark.real
@pytest.mark.parametrize("layers", ["all", "odd"])
def test_embeddings_are_the_dense_ones(layers, tmp_path):
    moeify.upcycle(minilm(), tmp_path / "moe", num_experts=4, noise=0.0, layers=layers)
    dense = SentenceTransformer(str(minilm()), device="cpu")
    moe = SentenceTransformer(str(tmp_path / "moe"), device="cpu")
    assert type(moe[0].auto_model).__name__ == "BertMoeModel"
    assert [type(module).__name__ for module in moe] == [type(m).__name__ for m in dense]
    expected, found = dense.encode(SENTENCES), moe.encode(SENTENCES)
    assert np.abs(found - expected).max() <= 1e-6
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
