"""Phi-3 and Phi-4, which join the projections of a layer."""

from __future__ import annotations

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout
from moeify.families.values import Config, Dims

DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}
"""What Phi3Config assumes where config.json is silent; MixtralConfig differs."""
_FORMER = ("su", "yarn")  # what Phi3Config takes for longrope


def _canonical(config: Config) -> Config:
    config = {**config}
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in _FORMER:
            config[key] = {**rope, "rope_type": "longrope"}
    return names.filled(DEFAULTS)(config)


def _dims(config: Config) -> Dims:
    return names.grouped_query_dims(config, DEFAULTS)


LAYOUT = DenseLayout(
    model_type="phi3",
    class_prefix="Phi3",
    outer=names.DECODER_OUTER,
    per_layer=names.LLAMA_LAYER,
    ffn=names.GATED_FFN,
    heads={name: head for name, head in names.DECODER_HEADS.items() if name != "ForQuestionAnswering"},
    joined={
        "self_attn.qkv_proj.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
        "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    },
    dims=_dims,
    canonical=_canonical,
)
