"""MiniMax-M2: sigmoid scores and a bias for choosing."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.moe_names import (
    ATTENTION,
    LLAMA_NORMS,
    QK_NORMS,
    all_layers,
    decoder_dims,
    single_experts,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="minimax_m2",
    class_prefix="MiniMaxM2",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.gate",
    experts=single_experts("block_sparse_moe", numbered=True),
    dims=decoder_dims("intermediate_size", layers=62, hidden=3072, width=1536, vocabulary=200064),
    moe_layers=all_layers(62),
    num_experts_keys=("num_local_experts", "num_experts"),
    rule=RouterRule(scores="sigmoid", selection_bias="block_sparse_moe.e_score_correction_bias"),
    loaded_selection_bias="mlp.e_score_correction_bias",
    rest=Rest(
        per_layer=(*LLAMA_NORMS, *ATTENTION, *QK_NORMS),
    ),
)
