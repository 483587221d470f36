"""Qwen3."""

from __future__ import annotations

from moeify.families import dense_names as names
from moeify.families.base import DenseLayout
from moeify.families.dense.qwen2 import DEFAULTS
from moeify.families.rope import canonical_rope
from moeify.families.values import Config, Dims

HEAD_DIM = 128
"""Qwen3Config's default; Qwen3-MoE's is hidden_size / num_attention_heads."""


def _dims(config: Config) -> Dims:
    return names.grouped_query_dims(config, DEFAULTS, head_dim=HEAD_DIM)


LAYOUT = DenseLayout(
    model_type="qwen3",
    class_prefix="Qwen3",
    outer=names.DECODER_OUTER,
    per_layer={
        **names.LLAMA_LAYER,
        **names.QKV_BIASES,
        "self_attn.o_proj.bias": ("H",),
        "self_attn.q_norm.weight": ("D",),
        "self_attn.k_norm.weight": ("D",),
    },
    ffn=names.GATED_FFN,
    heads=names.DECODER_HEADS,
    dims=_dims,
    canonical=canonical_rope,
    # Present when attention_bias is true, which no published Qwen3 sets.
    optional=frozenset(f"self_attn.{part}_proj.bias" for part in "qkvo"),
)
