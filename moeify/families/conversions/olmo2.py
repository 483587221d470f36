"""OLMo 2 to FlexOlmo."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, dense_again
from moeify.families.dense.olmo2 import LAYOUT as DENSE
from moeify.families.engines import SGLANG, TRANSFORMERS, VLLM_GENERIC
from moeify.families.mixtures.flex_olmo import LAYOUT as MOE
from moeify.families.rope import spelled_rope
from moeify.families.values import Config

_MOE_DEFAULTS = {
    "vocab_size": 100352,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "pad_token_id": 100277,
    "eos_token_id": 100257,
}
"""What FlexOlmoConfig assumes where config.json is silent, and Olmo2Config does not."""


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    return {
        **spelled_rope(config),
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }


CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        to_moe=_to_moe,
        to_dense=dense_again("num_experts", "num_local_experts", "norm_topk_prob", defaults=_MOE_DEFAULTS),
        heads=("Model", "ForCausalLM"),
        engines=(TRANSFORMERS, VLLM_GENERIC, SGLANG),
    ),
)
