"""OLMoE."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest, RouterRule

LAYOUT = MoeLayout(
    model_type="olmoe",
    class_prefix="Olmoe",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("intermediate_size", layers=16, hidden=2048, width=2048, vocab=50304),
    moe_layers=names.all_layers(16),
    num_experts_keys=("num_experts", "num_local_experts"),
    rule=RouterRule(norm_key="norm_topk_prob", norm_default=False),
    rest=Rest(per_layer=(*names.LLAMA_BIASED, *names.QK_NORMS)),
)
