"""DeepSeek-V3: sigmoid scores in groups and a bias for choosing."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

LAYOUT = MoeLayout(
    model_type="deepseek_v3",
    class_prefix="DeepseekV3",
    experts=names.single_experts("mlp"),
    dims=names.decoder_dims("moe_intermediate_size", layers=61, hidden=7168, width=2048, vocab=129280),
    moe_layers=names.late_layers("first_k_dense_replace", first=3, default=61),
    num_experts_keys=names.ROUTED_KEYS,
    shared_keys=("n_shared_experts",),
    rule=names.GROUPED,
    rest=Rest(
        per_layer=(*names.LLAMA_NORMS, *names.LATENT_ATTENTION),
        ffn=names.FFN,
        shared=names.gated("mlp.shared_experts"),
        ignored=("model.layers.61.",),
    ),
)
