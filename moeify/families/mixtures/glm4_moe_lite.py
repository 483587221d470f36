"""GLM-4-MoE-Lite: DeepSeek-V3's attention and routing."""

from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

LAYOUT = MoeLayout(
    model_type="glm4_moe_lite",
    class_prefix="Glm4MoeLite",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("moe_intermediate_size", layers=47, hidden=2048, width=1536, vocab=154880),
    moe_layers=names.sparse_layers(47, "first_k_dense_replace", first=1),
    num_experts_keys=names.ROUTED_KEYS,
    shared_keys=("n_shared_experts",),
    rule=replace(names.GROUPED, scaling_default=1.8),
    rest=Rest(
        per_layer=(*names.LLAMA_NORMS, *names.LATENT_ATTENTION),
        ffn=names.FFN,
        shared=names.gated("mlp.shared_experts"),
        ignored=("model.layers.47.",),
    ),
)
