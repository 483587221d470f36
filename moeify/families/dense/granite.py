"""Granite."""

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""What GraniteConfig and GraniteMoeConfig assume where config.json is silent."""
_BIASES = {**names.ATTENTION_BIASES, **names.FFN_BIASES}

LAYOUT = DenseLayout(
    model_type="granite",
    class_prefix="Granite",
    outer=names.DECODER_OUTER,
    per_layer={**names.LLAMA_LAYER, **_BIASES},
    optional=frozenset(_BIASES),
    ffn=names.GATED_FFN,
    heads=names.heads("Model", "ForCausalLM"),
    dims=lambda config: names.grouped_query_dims(config, DEFAULTS),
    canonical=names.filled(DEFAULTS),
)
