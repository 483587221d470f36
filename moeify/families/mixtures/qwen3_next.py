"""Qwen3-Next: linear attention and a gated shared expert."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.moe_names import (
    FFN,
    LINEAR_ATTENTION,
    SHARED_EXPERT,
    decoder_dims,
    single_experts,
    stepped_layers,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="qwen3_next",
    class_prefix="Qwen3Next",
    experts=single_experts("mlp"),
    dims=decoder_dims(
        "moe_intermediate_size", layers=48, hidden=2048, width=512, vocabulary=151936
    ),
    moe_layers=stepped_layers(48),
    rule=RouterRule(norm_key="norm_topk_prob"),
    rest=Rest(
        per_layer=(
            *LINEAR_ATTENTION,
            "linear_attn.in_proj_qkvz.weight",
            "linear_attn.in_proj_ba.weight",
        ),
        ffn=FFN,
        shared=SHARED_EXPERT,
        ignored=("mtp.",),
    ),
)
