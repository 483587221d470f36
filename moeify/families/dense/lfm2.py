"""LFM2, whose layers mix tokens by attention or by short convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from moeify.errors import CheckpointError
from moeify.families import dense_names as names
from moeify.families.base import DenseLayout, FfnTensor
from moeify.families.rope import canonical_rope
from moeify.families.values import Config, Dims, positive

DEFAULTS = {
    "vocab_size": 65536,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "rope_theta": 1e6,
    "conv_bias": False,
    "conv_L_cache": 3,
    "tie_word_embeddings": True,
}
"""What Lfm2Config assumes where config.json is silent."""
_FORMER = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}
MAX_FACTOR = 1000
_ADJUSTS = ("block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of")
_CONV_BIASES = ("conv.conv.bias", "conv.in_proj.bias", "conv.out_proj.bias")


def _canonical(config: Config) -> Config:
    """``config`` with the width that FFNs have and the kinds of all layers."""
    config = canonical_rope({**DEFAULTS, **config})
    config |= {new: config.pop(old) for old, new in _FORMER.items() if old in config}
    config["layer_types"] = _kinds(config)
    config.pop("full_attn_idxs", None)
    return {**config, "intermediate_size": _width(config), "block_auto_adjust_ff_dim": False}


def _width(config: Config) -> int:
    width = positive(config, "intermediate_size")
    if not config.get("block_auto_adjust_ff_dim", True):
        return width
    width, factor = int(2 * width / 3), config.get("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return width
    if type(factor) not in (int, float) or not 0 < factor < MAX_FACTOR:
        raise CheckpointError(
            f"config.json: block_ffn_dim_multiplier must be a positive number up to {MAX_FACTOR}, not {factor!r}",
            "mend config.json, or use the one that belongs to these weights",
        )
    step = positive(config, "block_multiple_of", 256)
    return -(-int(factor * width) // step) * step


def _dims(config: Config) -> Dims:
    config = {**DEFAULTS, **config}
    return {**names.grouped_query_dims(config), "F": _width(config), "W": positive(config, "conv_L_cache")}


def _kinds(config: Config) -> Sequence[str]:
    kinds, attending = config.get("layer_types"), config.get("full_attn_idxs")
    if isinstance(kinds, list):
        return [str(kind) for kind in kinds]
    layers = range(positive(config, "num_hidden_layers", 32))
    listed = attending if isinstance(attending, list) else layers
    return ["full_attention" if layer in listed else "conv" for layer in layers]


LAYOUT = DenseLayout(
    model_type="lfm2",
    class_prefix="Lfm2",
    norm="ffn_norm.weight",
    outer={"embed_tokens.weight": ("V", "H"), "embedding_norm.weight": ("H",)},
    per_layer={"operator_norm.weight": ("H",), "ffn_norm.weight": ("H",)},
    kinds=_kinds,
    by_kind={
        "full_attention": {
            "self_attn.q_proj.weight": ("A", "H"),
            "self_attn.k_proj.weight": ("K", "H"),
            "self_attn.v_proj.weight": ("K", "H"),
            "self_attn.out_proj.weight": ("H", "A"),
            "self_attn.q_layernorm.weight": ("D",),
            "self_attn.k_layernorm.weight": ("D",),
        },
        "conv": {
            "conv.conv.weight": ("H", 1, "W"),
            "conv.in_proj.weight": ("3H", "H"),
            "conv.out_proj.weight": ("H", "H"),
            **dict(zip(_CONV_BIASES, (("H",), ("3H",), ("H",)), strict=True)),
        },
    },
    optional=frozenset(_CONV_BIASES),
    ffn=(
        FfnTensor(role="gate", name="feed_forward.w1.weight", shape=("F", "H")),
        FfnTensor(role="up", name="feed_forward.w3.weight", shape=("F", "H")),
        FfnTensor(role="down", name="feed_forward.w2.weight", shape=("H", "F")),
    ),
    heads=names.heads("Model", "ForCausalLM"),
    ties_by_default=True,
    dims=_dims,
    canonical=_canonical,
)
