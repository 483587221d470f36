"""GraniteMoE, whose experts are stacked."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

LAYOUT = MoeLayout(
    model_type="granitemoe",
    class_prefix="GraniteMoe",
    router="block_sparse_moe.router.layer.weight",
    router_module="block_sparse_moe.router",
    experts=names.fused_experts("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
    dims=names.decoder_dims("intermediate_size", layers=32, hidden=4096, width=11008, vocab=32000),
    moe_layers=names.all_layers(32),
    num_experts_keys=names.LOCAL_KEYS,
    rest=Rest(per_layer=names.LLAMA_BIASED),
)
