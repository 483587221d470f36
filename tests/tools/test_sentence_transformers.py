"""sentence-transformers loads an upcycled sentence encoder and computes the same embeddings."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

import moeify

from ..real.checkpoints import minilm

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
}
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


def xlm_roberta_like(folder: Path) -> Path:
    """As multilingual-e5 lies on the Hub: bare names, the positions' buffer, XLM-R's own tokenizer."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *string.ascii_letters, *".,"]
    tokenizer = transformers.XLMRobertaTokenizer(vocab=[(piece, -float(n > 4)) for n, piece in enumerate(pieces)])
    config = transformers.XLMRobertaConfig(vocab_size=len(tokenizer), type_vocab_size=1, pad_token_id=1, **SIZES)
    buffers = {"embeddings.position_ids": torch.arange(SIZES["max_position_embeddings"])[None]}
    return encoder(folder, transformers.XLMRobertaModel(config), tokenizer, buffers)


def modernbert_like(folder: Path) -> Path:
    """As gte-modernbert lies on the Hub: bare names, no biases, the keys of its first config."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_letters, *(f"##{c}" for c in string.ascii_letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=transformers.BertTokenizer(vocab=vocabulary)._tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = transformers.ModernBertConfig(vocab_size=len(pieces), local_attention=8, **ids, **SIZES)
    made = encoder(folder, transformers.ModernBertModel(config), tokenizer, {})
    written = json.loads((made / "config.json").read_text())
    for key in ("layer_types", "rope_parameters"):
        del written[key]
    written |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
    (made / "config.json").write_text(json.dumps(written))
    return made


def encoder(folder: Path, model: Any, tokenizer: Any, buffers: dict[str, torch.Tensor]) -> Path:
    """A folder with the files that sentence-transformers reads."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(float("norm" in name.lower() and name.endswith("weight")), 0.2)
    model.save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors") | buffers, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    pooling = {"word_embedding_dimension": SIZES["hidden_size"], "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


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
