"""Qwen3 and Qwen3-MoE, whose classes transformers and other engines bring along."""

from __future__ import annotations

from moeify.errors import ConfigError
from moeify.families.base import (
    Config,
    DenseLayout,
    Family,
    MoeLayout,
    MoeSettings,
    positive,
    rest_of,
)
from moeify.families.qwen2 import (
    GATED_EXPERTS,
    GATED_FFN,
    OUTER,
    PER_LAYER,
    TOP_K_SOFTMAX,
    decoder_dims,
    decoder_heads,
    gated_dense_config,
    gated_moe_config,
    layer_types,
    stepped_moe_layers,
)
from moeify.families.rope import canonical_rope

__all__ = ["QWEN3"]

_HEAD_DIM = 128  # Qwen3Config's default; Qwen3-MoE's is hidden_size / num_attention_heads


def _dims(config: Config) -> dict[str, int]:
    return decoder_dims(config, _HEAD_DIM)


def _moe_dims(config: Config) -> dict[str, int]:
    return {**decoder_dims(config), "F": positive(config, "moe_intermediate_size", 768)}


def _to_moe_config(config: Config, settings: MoeSettings) -> Config:
    kinds = set(layer_types(config))
    if len(kinds) > 1:
        raise ConfigError(
            "this Qwen3 mixes full and sliding-window attention layers, which Qwen3-MoE cannot",
            "set use_sliding_window to false in config.json if you accept full attention",
        )
    sliding = kinds == {"sliding_attention"}
    result = gated_moe_config(config, settings)
    result.pop("layer_types", None)
    return {
        **result,
        "head_dim": config.get("head_dim") or _HEAD_DIM,
        "num_local_experts": settings.num_experts,
        "use_sliding_window": sliding,
        "sliding_window": result["sliding_window"] if sliding else None,
    }


def _to_dense_config(config: Config) -> Config:
    layers = positive(config, "num_hidden_layers")
    dense = gated_dense_config(config, len(stepped_moe_layers(config)) < layers)
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    dense["head_dim"] = config.get("head_dim") or hidden // heads
    if config.get("use_sliding_window"):
        dense["layer_types"] = ["sliding_attention"] * layers
    return dense


_DENSE = DenseLayout(
    prefixes=("model.", "transformer."),
    layer="layers.{layer}.",
    outer=OUTER,
    per_layer={
        **PER_LAYER,
        "self_attn.o_proj.bias": ("H",),
        "self_attn.q_norm.weight": ("D",),
        "self_attn.k_norm.weight": ("D",),
    },
    ffn=GATED_FFN,
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    heads=decoder_heads(qa_moe_prefix="transformer."),
    dims=_dims,
    canonical=canonical_rope,
    ties_by_default=False,
    buffers=(".rotary_emb.inv_freq",),
    # Present when attention_bias is true, which no published Qwen3 sets.
    optional=frozenset(f"self_attn.{part}_proj.bias" for part in "qkvo"),
)

QWEN3 = Family(
    model_type="qwen3",
    class_prefixes=("Qwen3", "Qwen3Moe"),
    to_moe_config=_to_moe_config,
    to_dense_config=_to_dense_config,
    gguf_renormalises=True,
    dense=_DENSE,
    moe=MoeLayout(
        model_type="qwen3_moe",
        prefixes=("model.", "transformer."),
        layer="layers.{layer}.",
        router="mlp.gate.weight",
        experts=GATED_EXPERTS,
        norm="post_attention_layernorm.weight",
        norm_bias=None,
        dims=_moe_dims,
        moe_layers=stepped_moe_layers,
        rest=rest_of(_DENSE),
        rule=TOP_K_SOFTMAX,
        num_experts_keys=("num_local_experts", "num_experts"),
    ),
)
