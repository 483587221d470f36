"""GLM-4-MoE: DeepSeek-V3's routing with plain attention."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

LAYOUT = MoeLayout(
    model_type="glm4_moe",
    class_prefix="Glm4Moe",
    experts=names.single_experts("mlp"),
    dims=names.with_shared(
        names.decoder_dims("moe_intermediate_size", layers=46, hidden=4096, width=1408, vocab=151552),
        "n_shared_experts",
        1,
    ),
    shared=names.shared_experts("mlp.shared_experts"),
    moe_layers=names.late_layers("first_k_dense_replace", first=1, default=46),
    num_experts_keys=names.ROUTED_KEYS,
    shared_keys=("n_shared_experts",),
    rule=names.TIED,
    rest=Rest(
        per_layer=(*names.LLAMA_BIASED, *names.QK_NORMS),
        ffn=names.FFN,
        shared=names.gated("mlp.shared_experts"),
        ignored=("model.layers.46.", "model.layers.92."),
    ),
)
