"""BERT-MoE, whose classes are moeify's own."""

from moeify.families import moe_names as names
from moeify.families.dense.bert import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout

LAYOUT = MoeLayout(
    model_type="bert_moe",
    encoder=True,
    unsharded="accelerate cannot shard a BERT, whose head has a bias under two names",
    class_prefix="BertMoe",
    prefixes=DENSE.prefixes,
    layer=DENSE.layer,
    router="moe.router.weight",
    guard="intermediate.dense.weight",
    experts=names.plain_experts("moe.experts"),
    norm=DENSE.norm,
    norm_bias=DENSE.norm_bias,
    dims=DENSE.dims,
    moe_layers=names.listed_layers,
    rest=DENSE.rest(),
    rule=names.OWN_RULE,
)
