"""The text model of Gemma 3 alone."""

from __future__ import annotations

from moeify.families import dense_names as names
from moeify.families.dense.gemma import BIASES
from moeify.families.dense.gemma2 import DEFAULTS, LAYER

LAYOUT = names.decoder_layout(
    "gemma3_text",
    "Gemma3",
    {**DEFAULTS, "vocab_size": 262208},
    head_dim=256,
    per_layer={**LAYER, "self_attn.q_norm.weight": ("D",), "self_attn.k_norm.weight": ("D",)},
    heads={
        "TextModel": names.DECODER_HEADS["Model"],
        "ForCausalLM": names.DECODER_HEADS["ForCausalLM"],
        "TextForSequenceClassification": names.DECODER_HEADS["ForSequenceClassification"],
    },
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    norm="pre_feedforward_layernorm.weight",
    norm_offset=1.0,
    ties_by_default=True,
    optional=frozenset(BIASES),
)
