"""GraniteMoE, whose experts are stacked."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest
from moeify.families.moe_names import (
    ATTENTION,
    ATTENTION_BIASES,
    LLAMA_NORMS,
    LOCAL_KEYS,
    all_layers,
    decoder_dims,
    fused_experts,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="granitemoe",
    class_prefix="GraniteMoe",
    router="block_sparse_moe.router.layer.weight",
    router_module="block_sparse_moe.router",
    experts=fused_experts(
        "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"
    ),
    dims=decoder_dims("intermediate_size", layers=32, hidden=4096, width=11008, vocabulary=32000),
    moe_layers=all_layers(32),
    num_experts_keys=LOCAL_KEYS,
    rest=Rest(
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES),
    ),
)
