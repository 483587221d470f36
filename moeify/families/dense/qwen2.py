"""Qwen2."""

from __future__ import annotations

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout
from moeify.families.rope import canonical_rope
from moeify.families.values import Config, Dims

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""What Qwen2Config and Qwen3Config assume where config.json is silent; the MoE classes differ."""


def _dims(config: Config) -> Dims:
    return names.grouped_query_dims(config, DEFAULTS)


LAYOUT = DenseLayout(
    model_type="qwen2",
    class_prefix="Qwen2",
    outer=names.DECODER_OUTER,
    per_layer={**names.LLAMA_LAYER, **names.QKV_BIASES},
    ffn=names.GATED_FFN,
    heads=names.DECODER_HEADS,
    dims=_dims,
    canonical=canonical_rope,
)
