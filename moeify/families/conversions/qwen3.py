"""Qwen3 to Qwen3-MoE."""

from __future__ import annotations

from moeify.errors import ConfigError
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.conversions.qwen2 import GGUF, gated_dense_config, gated_moe_config, layer_types
from moeify.families.dense.qwen3 import HEAD_DIM
from moeify.families.dense.qwen3 import LAYOUT as DENSE
from moeify.families.engines import NATIVE_RUN
from moeify.families.mixtures.qwen3_moe import LAYOUT as MOE
from moeify.families.values import Config, positive


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    kinds = set(layer_types(config))
    if len(kinds) > 1:
        raise ConfigError(
            "this Qwen3 mixes full and sliding-window attention layers, which Qwen3-MoE cannot",
            "set use_sliding_window to false in config.json if you accept full attention",
        )
    sliding = kinds == {"sliding_attention"}
    result = gated_moe_config(config, settings)
    result.pop("layer_types", None)
    return {
        **result,
        "head_dim": config.get("head_dim") or HEAD_DIM,
        "num_local_experts": settings.num_experts,
        "use_sliding_window": sliding,
        "sliding_window": result["sliding_window"] if sliding else None,
    }


def _to_dense(config: Config) -> Config:
    dense = gated_dense_config(config)
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    dense["head_dim"] = config.get("head_dim") or hidden // heads
    if config.get("use_sliding_window"):
        layers = positive(config, "num_hidden_layers")
        dense["layer_types"] = ["sliding_attention"] * layers
    return dense


CONVERSIONS = (Conversion(dense=DENSE, moe=MOE, to_moe=_to_moe, to_dense=_to_dense, engines=(*NATIVE_RUN, *GGUF)),)
