"""GPT-2-MoE, whose classes are moeify's own."""

from moeify.families import moe_names as names
from moeify.families.dense.gpt2 import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout

LAYOUT = MoeLayout(
    model_type="gpt2_moe",
    class_prefix="GPT2Moe",
    prefixes=DENSE.prefixes,
    layer=DENSE.layer,
    router="mlp.router.weight",
    guard="mlp.c_fc.weight",
    experts=names.plain_experts("mlp.experts", transposed=True),
    norm=DENSE.norm,
    norm_bias=DENSE.norm_bias,
    dims=DENSE.dims,
    moe_layers=names.listed_layers,
    rest=DENSE.rest(),
    rule=names.OWN_RULE,
)
