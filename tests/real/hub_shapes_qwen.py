"""Qwen2 and Qwen3 checkpoints with random weights, in one file or in shards with an index."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .tiny_parts import Draw, write_byte_tokenizer, write_json

_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def qwen_like(
    folder: Path,
    model_type: str = "qwen2",
    *,
    tied: bool = True,
    dtype: str = "bfloat16",
    shards: int = 2,
    head: str = "ForCausalLM",
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int = 2,
    ffn: int = 160,
    seed: int = 0,
) -> Path:
    """`head` is what follows Qwen2 or Qwen3 in the class name: Model, ForCausalLM, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    # As on the Hub, the embedding has more rows than the tokenizer has tokens.
    vocabulary = write_byte_tokenizer(folder, "Qwen2Tokenizer", _SPECIALS) + 23
    config = _config(model_type, head, tied, dtype)
    config |= {
        "bos_token_id": vocabulary - 26,
        "eos_token_id": vocabulary - 24,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "max_window_layers": layers,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": key_value_heads,
        "vocab_size": vocabulary,
    }
    if model_type == "qwen3":
        config |= {"attention_bias": False, "head_dim": 2 * hidden // heads}
    write_json(folder / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    write_json(folder / "generation_config.json", ids)
    _save_shards(folder, _tensors(config, head, Draw(seed, getattr(torch, dtype))), shards)
    return folder


def _config(model_type: str, head: str, tied: bool, dtype: str) -> dict[str, Any]:
    return {
        "architectures": [model_type.capitalize() + head],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "model_type": model_type,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
    }


def _tensors(config: dict[str, Any], head: str, draw: Draw) -> dict[str, torch.Tensor]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    prefix = {"Model": "", "ForQuestionAnswering": "transformer."}.get(head, "model.")
    tensors = {f"{prefix}embed_tokens.weight": draw.matrix(vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        tensors |= _layer(config, f"{prefix}layers.{layer}.", draw)
    tensors[f"{prefix}norm.weight"] = draw.norm(hidden)
    if head == "ForCausalLM" and not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = draw.matrix(vocabulary, hidden)
    if head in ("ForSequenceClassification", "ForTokenClassification"):
        tensors["score.weight"] = draw.matrix(2, hidden)
    if head == "ForTokenClassification":
        tensors["score.bias"] = draw.bias(2)
    if head == "ForQuestionAnswering":
        tensors |= {"qa_outputs.weight": draw.matrix(2, hidden), "qa_outputs.bias": draw.bias(2)}
    return tensors


def _layer(config: dict[str, Any], prefix: str, draw: Draw) -> dict[str, torch.Tensor]:
    hidden, ffn, heads = (config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head_dim = config.get("head_dim", hidden // heads)
    rows = {
        "q_proj": heads * head_dim,
        "k_proj": config["num_key_value_heads"] * head_dim,
        "v_proj": config["num_key_value_heads"] * head_dim,
    }
    tensors = {f"{prefix}input_layernorm.weight": draw.norm(hidden)}
    for name, size in rows.items():
        tensors[f"{prefix}self_attn.{name}.weight"] = draw.matrix(size, hidden)
        if config["model_type"] == "qwen2":
            tensors[f"{prefix}self_attn.{name}.bias"] = draw.bias(size)
    if config["model_type"] == "qwen3":
        tensors[f"{prefix}self_attn.q_norm.weight"] = draw.norm(head_dim)
        tensors[f"{prefix}self_attn.k_norm.weight"] = draw.norm(head_dim)
    tensors[f"{prefix}self_attn.o_proj.weight"] = draw.matrix(hidden, heads * head_dim)
    tensors[f"{prefix}post_attention_layernorm.weight"] = draw.norm(hidden)
    tensors[f"{prefix}mlp.gate_proj.weight"] = draw.matrix(ffn, hidden)
    tensors[f"{prefix}mlp.up_proj.weight"] = draw.matrix(ffn, hidden)
    tensors[f"{prefix}mlp.down_proj.weight"] = draw.matrix(hidden, ffn)
    return tensors


def _save_shards(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        return
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        # Cuts fall inside layers, as they do in shards cut by size.
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata=metadata)
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)
