"""EXAONE-MoE: DeepSeek-V3's routing with attention by windows."""

from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

LAYOUT = MoeLayout(
    model_type="exaone_moe",
    class_prefix="ExaoneMoe",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("moe_intermediate_size", layers=32, hidden=4096, width=1024, vocab=102400),
    moe_layers=names.sparse_layers(32, "first_k_dense_replace", first=1),
    shared_keys=("num_shared_experts",),
    rule=replace(names.GROUPED, scaling_default=2.5, selection_bias="mlp.e_score_correction_bias"),
    loaded_selection_bias=names.GROUPED.selection_bias,
    rest=Rest(
        per_layer=(*names.LLAMA_LAYER, *names.QK_NORMS),
        ffn=names.FFN,
        shared=names.gated("mlp.shared_experts"),
        ignored=("mtp.",),
    ),
)
