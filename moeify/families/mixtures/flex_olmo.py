"""FlexOlmo: its routers read the residual stream itself."""

from moeify.families import moe_names as names
from moeify.families.dense.olmo2 import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout, RouterRule

LAYOUT = MoeLayout(
    model_type="flex_olmo",
    class_prefix="FlexOlmo",
    norm=None,
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("intermediate_size", layers=32, hidden=4096, width=11008, vocab=100352),
    moe_layers=names.all_layers(32),
    num_experts_keys=("num_experts", "num_local_experts"),
    rule=RouterRule(norm_key="norm_topk_prob", norm_default=False),
    rest=DENSE.rest(),
)
