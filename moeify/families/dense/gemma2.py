"""Gemma 2, with a normalisation before and behind both halves of a layer."""

from __future__ import annotations

from moeify.families import dense_names as names
from moeify.families.dense.gemma import BIASES
from moeify.families.values import Shape

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
LAYER: dict[str, Shape] = {
    **names.LLAMA_LAYER,
    **BIASES,
    "pre_feedforward_layernorm.weight": ("H",),
    "post_feedforward_layernorm.weight": ("H",),
}

LAYOUT = names.decoder_layout(
    "gemma2",
    "Gemma2",
    DEFAULTS,
    head_dim=256,
    per_layer=LAYER,
    heads=names.heads("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification"),
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    norm="pre_feedforward_layernorm.weight",
    norm_offset=1.0,
    ties_by_default=True,
    optional=frozenset(BIASES),
)
