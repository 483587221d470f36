"""Mellum 2: a Qwen3-MoE whose layers may have windows or none, and rotary positions by that."""

from __future__ import annotations

from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.dense.qwen3 import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout, RouterRule
from moeify.families.values import Config, positive

_LAYERS = 28


def _sparse_layers(config: Config) -> tuple[int, ...]:
    kinds = config.get("mlp_layer_types")
    if not isinstance(kinds, list):
        return tuple(range(positive(config, "num_hidden_layers", _LAYERS)))
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "sparse")


LAYOUT = MoeLayout(
    model_type="mellum",
    class_prefix="Mellum",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("moe_intermediate_size", layers=_LAYERS, hidden=2304, width=896, vocab=98304),
    moe_layers=_sparse_layers,
    num_experts_keys=names.LOCAL_KEYS,
    rule=RouterRule(norm_key="norm_topk_prob"),
    rest=replace(DENSE.rest(), ignored=("mtp.",)),
)
