"""Qwen3-VL to Qwen3-VL-MoE, with its vision tower."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, dense_again, one_width, towered
from moeify.families.dense.qwen3_vl import LAYOUT as DENSE
from moeify.families.engines import MLX_CLASS, SGLANG, TRANSFORMERS, VLLM_TEXT
from moeify.families.mixtures.qwen3_vl_moe import LAYOUT as MOE
from moeify.families.rope import spelled_rope
from moeify.families.values import Config

_MOE = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "moe_intermediate_size": 1408,
    "rope_theta": 500000.0,
}
"""What Qwen3VLMoeTextConfig assumes where config.json is silent, and Qwen3VLTextConfig otherwise."""
_KEYS = (
    "num_experts",
    "num_local_experts",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
)


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    def to_moe(text: Config) -> Config:
        return {
            **spelled_rope(text),
            "num_experts": settings.num_experts,
            "num_local_experts": settings.num_experts,
            "num_experts_per_tok": settings.top_k,
            "moe_intermediate_size": settings.width or text["intermediate_size"],
            "norm_topk_prob": True,  # of which the class here does not ask, but those of others do
            "decoder_sparse_step": 1,
            "mlp_only_layers": settings.dense_layers,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
        }

    return towered(config, "qwen3_vl_moe", to_moe)


def _to_dense(config: Config) -> Config:
    def to_dense(text: Config) -> Config:
        width = one_width(MOE, {**_MOE, **text})
        return {**dense_again(*_KEYS, defaults=_MOE)(text), "intermediate_size": width}

    return towered(config, "qwen3_vl", to_dense)


_SQUARE = (
    "no, as far as its source tells (not run): it takes experts turned round, and these, which are square, lie as"
    " transformers 5 holds them"
)


CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        to_moe=_to_moe,
        to_dense=_to_dense,
        engines=(TRANSFORMERS, *(engine.but((MOE.is_square, _SQUARE)) for engine in (VLLM_TEXT, SGLANG, MLX_CLASS))),
    ),
)
