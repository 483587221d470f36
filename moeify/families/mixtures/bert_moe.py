"""BERT-MoE, whose classes are moeify's own."""

from __future__ import annotations

from moeify.families.dense.bert import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout
from moeify.families.moe_names import OWN_RULE, listed_layers, plain_experts

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="bert_moe",
    class_prefix="BertMoe",
    prefixes=DENSE.prefixes,
    layer=DENSE.layer,
    router="moe.router.weight",
    guard="intermediate.dense.weight",
    experts=plain_experts("moe.experts"),
    norm=DENSE.norm,
    norm_bias=DENSE.norm_bias,
    dims=DENSE.dims,
    moe_layers=listed_layers,
    rest=DENSE.rest(),
    rule=OWN_RULE,
)
