"""Qwen3 to Qwen3-MoE, where layers with and without windows are mixed to Mellum, and to moeify's own class."""

from __future__ import annotations

from typing import Any

from moeify.errors import CheckpointError, ConfigError
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.conversions.qwen2 import GGUF, gated_dense_config, gated_moe_config, layer_types
from moeify.families.dense.qwen2 import DEFAULTS
from moeify.families.dense.qwen3 import HEAD_DIM
from moeify.families.dense.qwen3 import LAYOUT as DENSE
from moeify.families.engines import MLX, NATIVE_RUN, SGLANG, TRANSFORMERS, VLLM_GENERIC
from moeify.families.grouped import dots1_conversion, glm4_conversion
from moeify.families.mixtures.mellum import LAYOUT as MELLUM
from moeify.families.mixtures.qwen3_moe import LAYOUT as MOE
from moeify.families.mixtures.qwen3_own_moe import LAYOUT as OWN
from moeify.families.own import own_conversion
from moeify.families.rope import canonical_rope, spelled_rope
from moeify.families.values import Config, positive


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    kinds = set(layer_types(config))
    if len(kinds) > 1:
        raise ConfigError(
            "this Qwen3 mixes full and sliding-window attention layers, which Qwen3-MoE cannot",
            "leave --arch out and it becomes a Mellum, or with a classifier's head one of moeify's own class",
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


_OF_THE_WHOLE = ("rope_theta", "rope_scaling", "rope_parameters", "mlp_only_layers", "decoder_sparse_step")


def _to_mellum(config: Config, settings: MoeSettings) -> Config:
    """Every kind of layer has the same rotary positions; top-level ones would be read by nobody."""
    result, kinds = gated_moe_config(config, settings), layer_types(config)
    rope = canonical_rope(result)["rope_parameters"]
    sparse = ("sparse" if layer in settings.moe_layers else "dense" for layer in range(settings.num_layers))
    return {
        **{key: value for key, value in result.items() if key not in _OF_THE_WHOLE},
        "head_dim": config.get("head_dim") or HEAD_DIM,
        "num_local_experts": settings.num_experts,
        "layer_types": kinds,
        "mlp_layer_types": list(sparse),
        "rope_parameters": {kind: dict(rope) for kind in sorted(set(kinds))},
        "num_nextn_predict_layers": 0,  # vLLM counts layers with it
    }


def _from_mellum(config: Config) -> Config:
    dense = gated_dense_config({**_MELLUM, **config}, MELLUM)
    kinds = dense.get("layer_types") or ["full_attention"] * positive(dense, "num_hidden_layers")
    ropes: dict[str, Any] = dense.get("rope_parameters") or {}
    found = [ropes[kind] for kind in sorted(set(kinds)) if isinstance(ropes.get(kind), dict)]
    if not found or any(rope != found[0] for rope in found):
        raise CheckpointError(
            "this Mellum has other rotary positions in layers with a window, which Qwen3 cannot express",
            "only a mixture that was upcycled from a Qwen3 becomes one again",
        )
    sliding = {"layer_types": kinds, "use_sliding_window": "sliding_attention" in kinds}
    dense = {key: value for key, value in dense.items() if key != "num_nextn_predict_layers"}
    return spelled_rope({**dense, **sliding, "rope_parameters": found[0]})


_MELLUM = {
    "head_dim": 128,
    "hidden_size": 2304,
    "intermediate_size": 7168,
    "moe_intermediate_size": 896,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 98304,
    "max_position_embeddings": 131072,
    "sliding_window": 1024,
}
"""What MellumConfig assumes where config.json is silent, and Qwen3Config otherwise."""


def _has_biases(config: Config) -> bool:
    return config.get("attention_bias") is True


def _has_dense_layers(config: Config) -> bool:
    return "dense" in (config.get("mlp_layer_types") or ())


def _stretches_rope(config: Config) -> bool:
    ropes = config.get("rope_parameters")
    kinds = ropes.values() if isinstance(ropes, dict) else ()
    return any(isinstance(rope, dict) and rope.get("rope_type") == "linear" for rope in kinds)


_NOT_IN_MLX = (
    (_has_biases, "no: its class has no biases in attention"),
    (_has_dense_layers, "no: its class has no dense layers"),
    (_stretches_rope, "no: its class ignores linear scaling of rotary positions"),
)

CONVERSIONS = (
    Conversion(dense=DENSE, moe=MOE, to_moe=_to_moe, to_dense=_to_dense, engines=(*NATIVE_RUN, *GGUF)),
    Conversion(
        dense=DENSE,
        moe=MELLUM,
        to_moe=_to_mellum,
        to_dense=_from_mellum,
        heads=("Model", "ForCausalLM"),
        engines=(TRANSFORMERS, VLLM_GENERIC, SGLANG, MLX.but(*_NOT_IN_MLX)),
    ),
    own_conversion(DENSE, OWN),
    glm4_conversion(DENSE, DEFAULTS, head_dim=HEAD_DIM, qk_norm=True, kinds=layer_types),
    dots1_conversion(DENSE, DEFAULTS, head_dim=HEAD_DIM, kinds=layer_types),
)
