"""GLM-4-MoE: DeepSeek-V3's routing with plain attention."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest
from moeify.families.moe_names import (
    ATTENTION,
    ATTENTION_BIASES,
    FFN,
    GROUPED,
    LLAMA_NORMS,
    QK_NORMS,
    ROUTED_KEYS,
    decoder_dims,
    gated,
    late_layers,
    single_experts,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="glm4_moe",
    class_prefix="Glm4Moe",
    experts=single_experts("mlp"),
    dims=decoder_dims(
        "moe_intermediate_size", layers=46, hidden=4096, width=1408, vocabulary=151552
    ),
    moe_layers=late_layers("first_k_dense_replace", first=1, default=46),
    num_experts_keys=ROUTED_KEYS,
    shared_keys=("n_shared_experts",),
    rule=GROUPED,
    rest=Rest(
        per_layer=(*LLAMA_NORMS, *ATTENTION, *ATTENTION_BIASES, *QK_NORMS),
        ffn=FFN,
        shared=gated("mlp.shared_experts"),
        ignored=("model.layers.46.", "model.layers.92."),
    ),
)
