"""GPT-2-MoE, whose classes are moeify's own."""

from __future__ import annotations

from moeify.families.dense.gpt2 import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout
from moeify.families.moe_names import OWN_RULE, listed_layers, plain_experts

__all__ = ["LAYOUT"]

LAYOUT = MoeLayout(
    model_type="gpt2_moe",
    class_prefix="GPT2Moe",
    prefixes=DENSE.prefixes,
    layer=DENSE.layer,
    router="mlp.router.weight",
    guard="mlp.c_fc.weight",
    experts=plain_experts("mlp.experts", transposed=True),
    norm=DENSE.norm,
    norm_bias=DENSE.norm_bias,
    dims=DENSE.dims,
    moe_layers=listed_layers,
    rest=DENSE.rest(),
    rule=OWN_RULE,
)
