"""Qwen3.5-MoE, with or without its vision tower."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

LAYOUT = MoeLayout(
    model_type="qwen3_5_moe",
    class_prefix="Qwen3_5Moe",
    prefixes=("model.language_model.", "model."),
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("moe_intermediate_size", layers=40, hidden=2048, width=512, vocab=248320),
    moe_layers=names.all_layers(40),
    rest=Rest(
        per_layer=(
            *names.LINEAR_ATTENTION,
            *(f"linear_attn.in_proj_{part}.weight" for part in ("qkv", "z", "a", "b")),
        ),
        shared=names.SHARED_EXPERT,
        towers=("model.visual.",),
        ignored=("mtp.",),
    ),
)
