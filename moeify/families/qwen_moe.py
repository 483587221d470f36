"""Qwen3-Next and Qwen3.5-MoE: mixtures with linear attention and a gated shared expert."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.moe_names import (
    ATTENTION,
    ATTENTION_BIASES,
    DECODER_HEADS,
    DECODER_OUTER,
    FFN,
    LLAMA_NORMS,
    QK_NORMS,
    all_layers,
    decoder_dims,
    single_experts,
)
from moeify.families.qwen2 import SHARED_EXPERT
from moeify.families.values import Config, positive

__all__ = ["QWEN3_5_MOE", "QWEN3_NEXT"]

_LINEAR_ATTENTION = tuple(
    f"linear_attn.{name}"
    for name in ("A_log", "dt_bias", "conv1d.weight", "norm.weight", "out_proj.weight")
)
_PER_LAYER = (*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES, *QK_NORMS, *_LINEAR_ATTENTION)


def _next_layers(config: Config) -> tuple[int, ...]:
    step = positive(config, "decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    layers = range(positive(config, "num_hidden_layers", 48))
    return tuple(layer for layer in layers if layer not in dense and (layer + 1) % step == 0)


QWEN3_NEXT = MoeLayout(
    model_type="qwen3_next",
    prefixes=("model.",),
    layer="layers.{layer}.",
    router="mlp.gate.weight",
    experts=single_experts("mlp"),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims(
        "moe_intermediate_size", layers=48, hidden=2048, width=512, vocabulary=151936
    ),
    moe_layers=_next_layers,
    rule=RouterRule(norm_key="norm_topk_prob"),
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(
            *_PER_LAYER,
            "linear_attn.in_proj_qkvz.weight",
            "linear_attn.in_proj_ba.weight",
        ),
        ffn=FFN,
        shared=SHARED_EXPERT,
        heads=DECODER_HEADS,
        ignored=("mtp.",),
    ),
)

QWEN3_5_MOE = MoeLayout(
    model_type="qwen3_5_moe",
    prefixes=("model.language_model.", "model."),
    layer="layers.{layer}.",
    router="mlp.gate.weight",
    experts=single_experts("mlp"),
    norm="post_attention_layernorm.weight",
    norm_bias=None,
    dims=decoder_dims(
        "moe_intermediate_size", layers=40, hidden=2048, width=512, vocabulary=248320
    ),
    moe_layers=all_layers(40),
    rule=RouterRule(),
    rest=Rest(
        outer=DECODER_OUTER,
        per_layer=(
            *_PER_LAYER,
            *(f"linear_attn.in_proj_{part}.weight" for part in ("qkv", "z", "a", "b")),
        ),
        shared=SHARED_EXPERT,
        heads=DECODER_HEADS,
        towers=("model.visual.",),
        ignored=("mtp.",),
    ),
)
