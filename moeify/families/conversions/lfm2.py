"""LFM2 to LFM2-MoE, which adds 1e-6 to what it divides the weights of experts by."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, dense_again, one_width
from moeify.families.dense.lfm2 import LAYOUT as DENSE
from moeify.families.engines import MLX, SGLANG, TRANSFORMERS, Engine
from moeify.families.mixtures.lfm2_moe import LAYOUT as MOE
from moeify.families.moe_layout import ExtraTensor
from moeify.families.rope import spelled_rope
from moeify.families.values import Config

_MOE_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_hidden_layers": 32,
    "rope_theta": 1e6,
}
"""What Lfm2MoeConfig assumes where config.json is silent, and Lfm2Config does not."""
_KEYS = (
    "num_experts",
    "num_local_experts",
    "num_dense_layers",
    "moe_intermediate_size",
    "use_expert_bias",
    "routed_scaling_factor",
    "norm_topk_prob",
)


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    return {
        **spelled_rope(config),
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "num_dense_layers": settings.moe_layers[0],
        "moe_intermediate_size": settings.width or config["intermediate_size"],
        "use_expert_bias": True,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "output_router_logits": False,
    }


def _to_dense(config: Config) -> Config:
    config = {**_MOE_DEFAULTS, **config}
    width = one_width(MOE, config)
    dense = dense_again(*_KEYS, defaults={})(config)
    return {**dense, "intermediate_size": width, "block_auto_adjust_ff_dim": False}


_VLLM = Engine(name="vLLM", verdict="not run on GPUs; on the CPU (0.32) its logits are 0.2 off")
CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        to_moe=_to_moe,
        to_dense=_to_dense,
        engines=(TRANSFORMERS, _VLLM, SGLANG, MLX),
        extras=(ExtraTensor(name="feed_forward.expert_bias", shape=("E",), dtype="F32"),),
    ),
)
