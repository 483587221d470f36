"""Qwen3-MoE: softmax before top-k, renormalised where config.json says so."""

from __future__ import annotations

from moeify.families import moe_names as names
from moeify.families.dense.qwen2 import DEFAULTS
from moeify.families.dense.qwen3 import LAYOUT as DENSE
from moeify.families.dense_names import grouped_query_dims
from moeify.families.moe_layout import MoeLayout, RouterRule
from moeify.families.values import Config, Dims, positive


def _dims(config: Config) -> Dims:
    width = positive(config, "moe_intermediate_size", 768)
    return {**grouped_query_dims(config, DEFAULTS), "F": width}


LAYOUT = MoeLayout(
    model_type="qwen3_moe",
    class_prefix="Qwen3Moe",
    prefixes=DENSE.prefixes,
    experts=names.single_experts("mlp"),
    dims=_dims,
    moe_layers=names.stepped_layers(32),
    rest=DENSE.rest(),
    rule=RouterRule(norm_key="norm_topk_prob", norm_default=False),
    num_experts_keys=names.LOCAL_KEYS,
    former_num_experts_key="num_experts",
)
