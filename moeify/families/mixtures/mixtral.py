"""Mixtral."""

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
"""What MixtralConfig assumes where config.json is silent; the dense classes differ."""

LAYOUT = MoeLayout(
    model_type="mixtral",
    class_prefix="Mixtral",
    router="block_sparse_moe.gate.weight",
    router_module="mlp.gate",
    experts=names.single_experts("block_sparse_moe", numbered=True),
    dims=names.decoder_dims("intermediate_size", layers=32, hidden=4096, width=14336, vocab=32000),
    moe_layers=names.all_layers(32),
    num_experts_keys=names.LOCAL_KEYS,
    rest=Rest(per_layer=names.LLAMA_LAYER),
)
