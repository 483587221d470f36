"""PhiMoE, whose two experts are chosen one after the other (sparsemixer)."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import DECODER_HEADS, MoeLayout, Rest, RouterRule

LAYOUT = MoeLayout(
    model_type="phimoe",
    class_prefix="Phimoe",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.router",
    experts=names.single_experts("block_sparse_moe", numbered=True),
    norm_bias="post_attention_layernorm.bias",
    dims=names.decoder_dims("intermediate_size", layers=32, hidden=4096, width=6400, vocab=32064),
    moe_layers=names.all_layers(32),
    num_experts_keys=names.LOCAL_KEYS,
    rule=RouterRule(scores="sparsemixer", norm_default=False),
    rest=Rest(
        outer=("embed_tokens.weight", "norm.weight", "norm.bias"),
        per_layer=(
            *names.LLAMA_NORMS,
            *(name.replace(".weight", ".bias") for name in names.LLAMA_NORMS),
            *names.ATTENTION,
            *names.ATTENTION_BIASES,
        ),
        heads=(*DECODER_HEADS, "lm_head.bias"),
    ),
)
