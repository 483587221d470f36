"""Llama."""

from __future__ import annotations

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout
from moeify.families.values import Config, Dims

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
"""What LlamaConfig assumes where config.json is silent; MixtralConfig differs."""


def _dims(config: Config) -> Dims:
    return names.grouped_query_dims(config, DEFAULTS)


LAYOUT = DenseLayout(
    model_type="llama",
    class_prefix="Llama",
    outer=names.DECODER_OUTER,
    per_layer={**names.LLAMA_LAYER, **names.ATTENTION_BIASES},
    ffn=(*names.GATED_FFN, *names.FFN_BIAS_ROLES),
    heads=names.DECODER_HEADS,
    dims=_dims,
    canonical=names.filled(DEFAULTS),
    # Present when attention_bias is true.
    optional=frozenset(names.ATTENTION_BIASES),
    only_if=names.if_biased(*names.FFN_BIASES),
)
