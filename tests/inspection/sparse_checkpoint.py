"""A checkpoint of the shape of Qwen3-30B-A3B: real headers, and files that are all hole."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from moeify.checkpoint.header import encode_header, tensor_nbytes

LAYERS, EXPERTS, HIDDEN, FFN, VOCABULARY = 48, 128, 2048, 768, 151936
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": HIDDEN,
    "intermediate_size": 6144,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": FFN,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 8,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}
TOTAL, ACTIVE = 30_532_122_624, 3_353_032_704


def tensors(layers: int = LAYERS, experts: int = EXPERTS) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of all tensors: 18,867 of them, unless more is asked for."""
    yield "lm_head.weight", "BF16", (VOCABULARY, HIDDEN)
    yield "model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, shape in (
            ("input_layernorm.weight", (HIDDEN,)),
            ("mlp.gate.weight", (experts, HIDDEN)),
            ("post_attention_layernorm.weight", (HIDDEN,)),
            ("self_attn.k_norm.weight", (128,)),
            ("self_attn.k_proj.weight", (512, HIDDEN)),
            ("self_attn.o_proj.weight", (HIDDEN, 4096)),
            ("self_attn.q_norm.weight", (128,)),
            ("self_attn.q_proj.weight", (4096, HIDDEN)),
            ("self_attn.v_proj.weight", (512, HIDDEN)),
        ):
            yield prefix + name, "BF16", shape
        for expert in range(experts):
            yield f"{prefix}mlp.experts.{expert}.down_proj.weight", "BF16", (HIDDEN, FFN)
            yield f"{prefix}mlp.experts.{expert}.gate_proj.weight", "BF16", (FFN, HIDDEN)
            yield f"{prefix}mlp.experts.{expert}.up_proj.weight", "BF16", (FFN, HIDDEN)
    yield "model.norm.weight", "BF16", (HIDDEN,)


def write_sparse(folder: Path, shards: int = 16, layers: int = LAYERS, experts: int = EXPERTS) -> Path:
    """Write config, index and ``shards`` sparse files; they take a few MB of disk."""
    listed = list(tensors(layers, experts))
    size = -(-len(listed) // shards)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = listed[number * size : (number + 1) * size]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        header = encode_header(part)
        with open(folder / file, "wb") as target:
            target.write(header)
            data = sum(tensor_nbytes(dtype, shape) for _, dtype, shape in part)
            os.truncate(target.fileno(), len(header) + data)
        weight_map |= {name: file for name, _, _ in part}
    index = {"metadata": {"total_size": 61064245248}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    config = CONFIG | {"num_hidden_layers": layers, "num_experts": experts}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder
