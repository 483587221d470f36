"""sentence-transformers loads an upcycled sentence encoder and computes the same embeddings."""

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import moeify

from ..real.checkpoints import minilm
from .encoders import modernbert_like, xlm_roberta_like

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


@pytest.mark.parametrize("make", [xlm_roberta_like, modernbert_like])
@pytest.mark.parametrize("route_by", ["token", "sequence"])
def test_encoders_of_other_makes(make, route_by, tmp_path):
    dense_folder = make(tmp_path / "dense")
    moeify.upcycle(dense_folder, tmp_path / "moe", num_experts=4, noise=0.0, route_by=route_by)
    dense, moe = (SentenceTransformer(str(folder), device="cpu") for folder in (dense_folder, tmp_path / "moe"))
    assert type(moe[0].auto_model).__module__ == "moeify.modeling.modeling_moe"
    assert type(moe.tokenizer) is type(dense.tokenizer)
    sentences = [text[:60] for text in SENTENCES]
    expected, found = dense.encode(sentences), moe.encode(sentences)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
