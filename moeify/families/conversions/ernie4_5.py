"""ERNIE 4.5 to its mixture."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, dense_again, one_width, refuse_set, refuse_shared
from moeify.families.dense.ernie4_5 import LAYOUT as DENSE
from moeify.families.engines import MLX, SGLANG, TRANSFORMERS, VLLM
from moeify.families.mixtures.ernie4_5_moe import LAYOUT as MOE
from moeify.families.moe_layout import ExtraTensor
from moeify.families.rope import spelled_rope
from moeify.families.values import Config

_MOE_DEFAULTS = {
    "hidden_size": 2560,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 1536,
    "moe_num_shared_experts": 2,
    "rope_theta": 500000.0,
    "intermediate_size": 12288,
}
"""What Ernie4_5_MoeConfig assumes where config.json is silent, and Ernie4_5Config does not."""
_KEYS = (
    "moe_num_experts",
    "moe_k",
    "moe_intermediate_size",
    "moe_num_shared_experts",
    "moe_layer_start_index",
    "moe_layer_end_index",
    "moe_layer_interval",
    "moe_norm_min",
)


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    refuse_set(config, "use_bias", "the mixture's experts would need biases")
    first, last = settings.moe_layers[0], settings.moe_layers[-1]
    every = len(settings.moe_layers) == 1 or settings.moe_layers[1] == first + 1
    return {
        **spelled_rope(config),
        "moe_num_experts": settings.num_experts,
        "moe_k": settings.top_k,
        "moe_intermediate_size": settings.width or config["intermediate_size"],
        "moe_num_shared_experts": 0,
        "moe_layer_start_index": first,
        "moe_layer_end_index": last,
        "moe_layer_interval": 1 if every else settings.moe_layers[1] - first,
        "moe_norm_min": 1e-12,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def _to_dense(config: Config) -> Config:
    config = {**_MOE_DEFAULTS, **config}
    refuse_shared(config, "moe_num_shared_experts")
    width = one_width(MOE, config)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    dense = dense_again(*_KEYS, defaults={})(config)
    return {**dense, "head_dim": head_dim, "intermediate_size": width}


CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        to_moe=_to_moe,
        to_dense=_to_dense,
        engines=(TRANSFORMERS, VLLM, SGLANG, MLX),
        extras=(ExtraTensor(name="mlp.moe_statics.e_score_correction_bias", shape=(1, "E"), dtype="F32"),),
    ),
)
