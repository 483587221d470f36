"""HunYuan's dense models to its mixtures, whose shared expert is silent."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, dense_again
from moeify.families.dense.hunyuan_v1_dense import DEFAULTS
from moeify.families.dense.hunyuan_v1_dense import LAYOUT as DENSE
from moeify.families.engines import SGLANG, TRANSFORMERS, VLLM_GENERIC
from moeify.families.mixtures.hunyuan_v1_moe import LAYOUT as MOE
from moeify.families.moe_layout import ExtraTensor
from moeify.families.rope import spelled_rope
from moeify.families.values import Config


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    return {
        **spelled_rope(config),
        "num_experts": settings.num_experts,
        "moe_topk": settings.top_k,
        "output_router_logits": False,
    }


CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        to_moe=_to_moe,
        to_dense=dense_again("num_experts", "num_local_experts", "moe_topk", defaults=DEFAULTS),
        engines=(TRANSFORMERS, VLLM_GENERIC, SGLANG),
        extras=(
            ExtraTensor(name="mlp.shared_mlp.gate_proj.weight", shape=("F", "H")),
            ExtraTensor(name="mlp.shared_mlp.up_proj.weight", shape=("F", "H")),
            ExtraTensor(name="mlp.shared_mlp.down_proj.weight", shape=("H", "F"), silences=True),
        ),
    ),
)
