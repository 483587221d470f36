"""Granite to GraniteMoE."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, dense_again, refuse_set
from moeify.families.dense.granite import DEFAULTS
from moeify.families.dense.granite import LAYOUT as DENSE
from moeify.families.engines import MLX, SGLANG, TRANSFORMERS, VLLM
from moeify.families.mixtures.granitemoe import LAYOUT as MOE
from moeify.families.rope import spelled_rope
from moeify.families.values import Config


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    refuse_set(config, "mlp_bias", "GraniteMoE's experts have no biases")
    return {
        **spelled_rope(config),
        "num_local_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


_BIASED = (lambda config: bool(config.get("attention_bias")), "no: it leaves out the biases of attention")

CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        to_moe=_to_moe,
        to_dense=dense_again("num_local_experts", "num_experts", defaults=DEFAULTS),
        engines=(TRANSFORMERS, VLLM.but(_BIASED), SGLANG, MLX),
    ),
)
