"""Ministral, which mixes layers with and without a window."""

from __future__ import annotations

from moeify.families import dense_names as names

LAYOUT = names.decoder_layout(
    "ministral",
    "Ministral",
    {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
)
