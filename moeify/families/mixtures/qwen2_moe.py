"""Qwen2-MoE: a names.gated shared expert beside the others, softmax before top-k."""

from __future__ import annotations

from moeify.families import moe_names as names
from moeify.families.dense.qwen2 import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout, RouterRule
from moeify.families.values import Config, Dims, positive


def _dims(config: Config) -> Dims:
    shared = config.get("shared_expert_intermediate_size", 5632)
    if type(shared) is not int or shared < 0:
        shared = positive(config, "shared_expert_intermediate_size")
    width = positive(config, "moe_intermediate_size", 1408)
    return {**DENSE.dims(config), "F": width, "S": shared}


LAYOUT = MoeLayout(
    model_type="qwen2_moe",
    class_prefix="Qwen2Moe",
    prefixes=DENSE.prefixes,
    experts=names.single_experts("mlp"),
    dims=_dims,
    moe_layers=names.stepped_layers(32),
    rest=DENSE.rest(names.SHARED_EXPERT),
    rule=RouterRule(norm_key="norm_topk_prob", norm_default=False),
)
