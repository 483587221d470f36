"""OLMoE."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.moe_names import (
    ATTENTION,
    ATTENTION_BIASES,
    LLAMA_NORMS,
    QK_NORMS,
    all_layers,
    decoder_dims,
    single_experts,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="olmoe",
    class_prefix="Olmoe",
    experts=single_experts("mlp"),
    dims=decoder_dims("intermediate_size", layers=16, hidden=2048, width=2048, vocabulary=50304),
    moe_layers=all_layers(16),
    num_experts_keys=("num_experts", "num_local_experts"),
    rule=RouterRule(norm_key="norm_topk_prob", norm_default=False),
    rest=Rest(
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES, *QK_NORMS),
    ),
)
