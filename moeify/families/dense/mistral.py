"""Mistral."""

from __future__ import annotations

from dataclasses import replace

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout
from moeify.families.values import Config, Dims

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
}
"""What MistralConfig assumes where config.json is silent; MixtralConfig differs."""


def _dims(config: Config) -> Dims:
    return names.grouped_query_dims(config, DEFAULTS)


_SPANS = names.DECODER_HEADS["ForQuestionAnswering"]

LAYOUT = DenseLayout(
    model_type="mistral",
    class_prefix="Mistral",
    outer=names.DECODER_OUTER,
    per_layer=names.LLAMA_LAYER,
    ffn=names.GATED_FFN,
    heads={**names.DECODER_HEADS, "ForQuestionAnswering": replace(_SPANS, prefix="model.")},
    dims=_dims,
    canonical=names.filled(DEFAULTS),
)
