"""OLMo 2, whose layers normalise what attention and FFN give, and not what they read."""

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout

DEFAULTS = {
    "vocab_size": 50304,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 1,
    "eos_token_id": 50279,
    "tie_word_embeddings": False,
}
"""What Olmo2Config assumes where config.json is silent."""
_LAYER = {
    **{name: shape for name, shape in names.LLAMA_LAYER.items() if name != "input_layernorm.weight"},
    "post_feedforward_layernorm.weight": ("H",),
    "self_attn.q_norm.weight": ("A",),
    "self_attn.k_norm.weight": ("K",),
    **names.ATTENTION_BIASES,
}

LAYOUT = DenseLayout(
    model_type="olmo2",
    class_prefix="Olmo2",
    norm=None,
    outer=names.DECODER_OUTER,
    per_layer=_LAYER,
    optional=frozenset(names.ATTENTION_BIASES),
    ffn=names.GATED_FFN,
    heads=names.heads("Model", "ForCausalLM", "ForSequenceClassification"),
    dims=lambda config: names.grouped_query_dims(config, DEFAULTS),
    canonical=names.filled(DEFAULTS),
)
