"""DeepSeek-V3: sigmoid scores in groups and a bias for choosing."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest
from moeify.families.moe_names import (
    FFN,
    GROUPED,
    LLAMA_NORMS,
    ROUTED_KEYS,
    decoder_dims,
    gated,
    late_layers,
    single_experts,
)

__all__ = ["LAYOUT"]

_LATENT_ATTENTION = tuple(
    f"self_attn.{part}"
    for part in (
        "q_proj.weight", "q_a_proj.weight", "q_a_proj.bias", "q_a_layernorm.weight",
        "q_b_proj.weight", "kv_a_proj_with_mqa.weight", "kv_a_proj_with_mqa.bias",
        "kv_a_layernorm.weight", "kv_b_proj.weight", "o_proj.weight", "o_proj.bias",
    )
)  # fmt: skip


LAYOUT = MoeLayout(
    model_type="deepseek_v3",
    class_prefix="DeepseekV3",
    experts=single_experts("mlp"),
    dims=decoder_dims(
        "moe_intermediate_size", layers=61, hidden=7168, width=2048, vocabulary=129280
    ),
    moe_layers=late_layers("first_k_dense_replace", first=3, default=61),
    num_experts_keys=ROUTED_KEYS,
    shared_keys=("n_shared_experts",),
    rule=GROUPED,
    rest=Rest(
        per_layer=(*LLAMA_NORMS, *_LATENT_ATTENTION),
        ffn=FFN,
        shared=gated("mlp.shared_experts"),
        ignored=("model.layers.61.",),
    ),
)
