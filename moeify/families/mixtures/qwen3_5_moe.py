"""Qwen3.5-MoE, with or without its vision tower."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest
from moeify.families.moe_names import (
    LINEAR_ATTENTION,
    SHARED_EXPERT,
    all_layers,
    decoder_dims,
    single_experts,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="qwen3_5_moe",
    class_prefix="Qwen3_5Moe",
    prefixes=("model.language_model.", "model."),
    experts=single_experts("mlp"),
    dims=decoder_dims(
        "moe_intermediate_size", layers=40, hidden=2048, width=512, vocabulary=248320
    ),
    moe_layers=all_layers(40),
    rest=Rest(
        per_layer=(
            *LINEAR_ATTENTION,
            *(f"linear_attn.in_proj_{part}.weight" for part in ("qkv", "z", "a", "b")),
        ),
        shared=SHARED_EXPERT,
        towers=("model.visual.",),
        ignored=("mtp.",),
    ),
)
