"""ERNIE 4.5."""

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout

DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
}
"""What Ernie4_5Config assumes where config.json is silent."""
_BIASES = {**names.ATTENTION_BIASES, **names.FFN_BIASES}

LAYOUT = DenseLayout(
    model_type="ernie4_5",
    class_prefix="Ernie4_5",
    outer=names.DECODER_OUTER,
    per_layer={**names.LLAMA_LAYER, **_BIASES},
    optional=frozenset(_BIASES),
    ffn=names.GATED_FFN,
    heads=names.heads("Model", "ForCausalLM"),
    ties_by_default=True,
    dims=lambda config: names.grouped_query_dims(config, DEFAULTS),
    canonical=names.filled(DEFAULTS),
)
