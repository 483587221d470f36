"""SmolLM2-135M from its GGUF file to a Qwen2 checkpoint whose attention biases are zero."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def write_qwen2_folder(folder: Path, gguf_file: Path, num_layers: int | None, dtype: str) -> None:
    """Write config, weights and tokenizer, with the first `num_layers` layers only."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    layers = num_layers or fields["llama.block_count"]
    if not 1 <= layers <= fields["llama.block_count"]:
        raise ValueError(f"num_layers is {layers}; the file has {fields['llama.block_count']}")
    config = _config(fields, layers, dtype)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]},
    )
    tensors = _state_dict(reader, config, getattr(torch, dtype))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder, fields)


def _config(fields: dict[str, Any], layers: int, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "max_window_layers": layers,
        "model_type": "qwen2",
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": layers,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": fields["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": fields["llama.vocab_size"],
    }


def _state_dict(reader: Any, config: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    from gguf import dequantize

    stored = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str, heads: int | None = None) -> torch.Tensor:
        tensor = stored[name]
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if heads:
            # llama.cpp interleaves the two rotary halves of every head; transformers does not.
            rows, columns = values.shape
            pairs = values.reshape(heads, rows // heads // 2, 2, columns)
            values = pairs.swapaxes(1, 2).reshape(rows, columns)
        return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)

    rotary = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors = {"model.embed_tokens.weight": read("token_embd.weight"), "model.norm.weight": read("output_norm.weight")}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, source in _LAYER_NAMES.items():
            heads = rotary.get(name.split(".")[-2])
            tensors[prefix + name] = read(f"blk.{layer}.{source}", heads)
        for projection in ("q_proj", "k_proj", "v_proj"):
            rows = tensors[f"{prefix}self_attn.{projection}.weight"].shape[0]
            tensors[f"{prefix}self_attn.{projection}.bias"] = torch.zeros(rows, dtype=dtype)
    return tensors


def _write_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, kind in kinds if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
