"""PhiMoE, whose two experts are chosen one after the other (sparsemixer)."""

from __future__ import annotations

from moeify.families.moe_layout import DECODER_HEADS, MoeLayout, Rest, RouterRule
from moeify.families.moe_names import (
    ATTENTION,
    ATTENTION_BIASES,
    LLAMA_NORMS,
    LOCAL_KEYS,
    all_layers,
    decoder_dims,
    single_experts,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="phimoe",
    class_prefix="Phimoe",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.router",
    experts=single_experts("block_sparse_moe", numbered=True),
    norm_bias="post_attention_layernorm.bias",
    dims=decoder_dims("intermediate_size", layers=32, hidden=4096, width=6400, vocabulary=32064),
    moe_layers=all_layers(32),
    num_experts_keys=LOCAL_KEYS,
    rule=RouterRule(scores="sparsemixer", norm_default=False),
    rest=Rest(
        outer=("embed_tokens.weight", "norm.weight", "norm.bias"),
        per_layer=(
            *LLAMA_NORMS, *(name.replace(".weight", ".bias") for name in LLAMA_NORMS),
            *ATTENTION, *ATTENTION_BIASES,
        ),
        heads=(*DECODER_HEADS, "lm_head.bias"),
    ),
)  # fmt: skip
