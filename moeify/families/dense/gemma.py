"""Gemma, whose normalisations add 1 to their weights."""

from __future__ import annotations

from moeify.families import dense_names as names

BIASES = names.ATTENTION_BIASES
"""Present when attention_bias is true, which no published Gemma sets."""

LAYOUT = names.decoder_layout(
    "gemma",
    "Gemma",
    {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    },
    head_dim=256,
    per_layer={**names.LLAMA_LAYER, **BIASES},
    heads=names.heads("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification"),
    activation=("hidden_act", "gelu_pytorch_tanh"),
    ties_by_default=True,
    optional=frozenset(BIASES),
    norm_offset=1.0,
)
