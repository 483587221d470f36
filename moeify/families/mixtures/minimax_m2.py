"""MiniMax-M2: sigmoid scores and a bias for choosing."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest, RouterRule

LAYOUT = MoeLayout(
    model_type="minimax_m2",
    class_prefix="MiniMaxM2",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.gate",
    experts=names.single_experts("block_sparse_moe", numbered=True),
    dims=names.decoder_dims("intermediate_size", layers=62, hidden=3072, width=1536, vocab=200064),
    moe_layers=names.all_layers(62),
    num_experts_keys=("num_local_experts", "num_experts"),
    rule=RouterRule(scores="sigmoid", selection_bias="block_sparse_moe.e_score_correction_bias"),
    loaded_selection_bias="mlp.e_score_correction_bias",
    rest=Rest(per_layer=(*names.LLAMA_LAYER, *names.QK_NORMS)),
)
