"""BERT checkpoints with random weights and the tensor names found on the Hub."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .tiny_parts import Draw, bert_vocabulary, write_bert_tokenizer, write_json


def bert_base_uncased_like(folder: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4, seed: int = 0) -> Path:
    """Old LayerNorm names, `bert.` prefix, both pre-training heads, no decoder.weight (tied)."""
    draw = Draw(seed)
    vocabulary = len(bert_vocabulary())
    tensors = _bert_body(draw, "bert.", hidden, layers, vocabulary, norm_names=("gamma", "beta"))
    tensors |= {
        "cls.predictions.bias": draw.bias(vocabulary),
        "cls.predictions.transform.dense.weight": draw.matrix(hidden, hidden),
        "cls.predictions.transform.dense.bias": draw.bias(hidden),
        "cls.predictions.transform.LayerNorm.gamma": draw.norm(hidden),
        "cls.predictions.transform.LayerNorm.beta": draw.bias(hidden),
        "cls.seq_relationship.weight": draw.matrix(2, hidden),
        "cls.seq_relationship.bias": draw.bias(2),
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = _bert_config("BertForMaskedLM", hidden, layers, heads, vocabulary)
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_bert_tokenizer(folder)
    return folder


def sentence_encoder_like(folder: Path, *, hidden: int = 64, layers: int = 2, heads: int = 4, seed: int = 0) -> Path:
    """Bare names, an I64 position_ids buffer, and the files sentence-transformers reads."""
    draw = Draw(seed)
    vocabulary = len(bert_vocabulary())
    tensors = _bert_body(draw, "", hidden, layers, vocabulary, norm_names=("weight", "bias"))
    tensors["embeddings.position_ids"] = torch.arange(512)[None]
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", _bert_config("BertModel", hidden, layers, heads, vocabulary))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_bert_tokenizer(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    return folder


def _bert_body(
    draw: Draw, prefix: str, hidden: int, layers: int, vocabulary: int, norm_names: tuple[str, str]
) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}

    def norm(name: str) -> None:
        tensors[f"{name}.LayerNorm.{norm_names[0]}"] = draw.norm(hidden)
        tensors[f"{name}.LayerNorm.{norm_names[1]}"] = draw.bias(hidden)

    def linear(name: str, rows: int, columns: int) -> None:
        tensors[f"{name}.weight"] = draw.matrix(rows, columns)
        tensors[f"{name}.bias"] = draw.bias(rows)

    for name, rows in {"word": vocabulary, "position": 512, "token_type": 2}.items():
        tensors[f"{prefix}embeddings.{name}_embeddings.weight"] = draw.matrix(rows, hidden)
    norm(f"{prefix}embeddings")
    for layer in range(layers):
        base = f"{prefix}encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{base}.attention.{name}", hidden, hidden)
        norm(f"{base}.attention.output")
        linear(f"{base}.intermediate.dense", 4 * hidden, hidden)
        linear(f"{base}.output.dense", hidden, 4 * hidden)
        norm(f"{base}.output")
    linear(f"{prefix}pooler.dense", hidden, hidden)
    return tensors


def _bert_config(architecture: str, hidden: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": 4 * hidden,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "4.6.0.dev0",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": vocabulary,
    }
