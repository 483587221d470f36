"""EXAONE 4, whose layers normalise what attention and FFN give, and not what they read."""

from __future__ import annotations

from moeify.families import dense_names as names

LAYOUT = names.decoder_layout(
    "exaone4",
    "Exaone4",
    {
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    per_layer={
        **{name: shape for name, shape in names.LLAMA_LAYER.items() if name != "input_layernorm.weight"},
        "post_feedforward_layernorm.weight": ("H",),
        "self_attn.q_norm.weight": ("D",),
        "self_attn.k_norm.weight": ("D",),
    },
    norm=None,
)
