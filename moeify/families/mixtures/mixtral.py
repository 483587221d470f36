"""Mixtral."""

from __future__ import annotations

from moeify.families.moe_layout import MoeLayout, Rest
from moeify.families.moe_names import (
    ATTENTION,
    LLAMA_NORMS,
    LOCAL_KEYS,
    all_layers,
    decoder_dims,
    single_experts,
)

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="mixtral",
    class_prefix="Mixtral",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.gate",
    experts=single_experts("block_sparse_moe", numbered=True),
    dims=decoder_dims("intermediate_size", layers=32, hidden=4096, width=14336, vocabulary=32000),
    moe_layers=all_layers(32),
    num_experts_keys=LOCAL_KEYS,
    rest=Rest(per_layer=(*LLAMA_NORMS, *ATTENTION)),
)
