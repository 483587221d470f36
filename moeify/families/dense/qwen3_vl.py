"""Qwen3-VL, a Qwen3 with a vision tower."""

from __future__ import annotations

from dataclasses import replace

from moeify.families import dense_names as names
from moeify.families.dense.qwen3 import LAYOUT as TEXT
from moeify.families.values import Config, Dims, text_config, with_text

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
}
"""What Qwen3VLTextConfig assumes where config.json is silent; Qwen3VLMoeTextConfig differs."""
_PREFIX = "model.language_model."


def _dims(config: Config) -> Dims:
    return names.grouped_query_dims({**DEFAULTS, **text_config(config)})


LAYOUT = replace(
    TEXT,
    model_type="qwen3_vl",
    class_prefix="Qwen3VL",
    prefixes=(_PREFIX, "language_model."),
    heads=names.seeing_heads(_PREFIX),
    dims=_dims,
    canonical=lambda config: with_text(config, names.filled(DEFAULTS)),
    towers=("model.visual.", "visual."),
)
