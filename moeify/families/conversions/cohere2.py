"""Cohere2 to its mixture."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, dense_again, one_width, refuse_set, refuse_shared
from moeify.families.dense.cohere2 import DEFAULTS
from moeify.families.dense.cohere2 import LAYOUT as DENSE
from moeify.families.engines import SGLANG, TRANSFORMERS, VLLM
from moeify.families.mixtures.cohere2_moe import LAYOUT as MOE
from moeify.families.rope import spelled_rope
from moeify.families.values import Config

_KEYS = (
    "num_experts",
    "num_local_experts",
    "num_shared_experts",
    "shared_expert_combination_strategy",
    "expert_selection_fn",
    "norm_topk_prob",
    "mlp_layer_types",
    "prefix_dense_intermediate_size",
    "prefix_dense_sliding_window_pattern",
    "sliding_window_pattern",
    "rms_norm_eps",
)


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    dense = set(settings.dense_layers)
    return {
        **spelled_rope(config),
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "num_shared_experts": 0,
        "expert_selection_fn": "softmax",
        "norm_topk_prob": True,
        "mlp_layer_types": ["dense" if n in dense else "sparse" for n in range(settings.num_layers)],
        "prefix_dense_intermediate_size": config["intermediate_size"],
        # 1 would rotate positions in dense layers without a window.
        "prefix_dense_sliding_window_pattern": 4,
        "rms_norm_eps": None,
        "output_router_logits": False,
    }


def _to_dense(config: Config) -> Config:
    refuse_shared(config, "num_shared_experts")
    refuse_set(config, "rms_norm_eps", "the dense class has another normalisation")
    config = {**DEFAULTS, **config}
    one_width(MOE, config, "intermediate_size", "prefix_dense_intermediate_size")
    return DENSE.canonical(dense_again(*_KEYS, defaults=DEFAULTS)(config))


_WINDOWED = (
    lambda config: isinstance(config.get("sliding_window"), int),
    "yes, for texts within the window; longer ones are 0.06 off on the CPU (0.32), in the dense model too",
)
CONVERSIONS = (
    Conversion(
        dense=DENSE, moe=MOE, to_moe=_to_moe, to_dense=_to_dense, engines=(TRANSFORMERS, VLLM.but(_WINDOWED), SGLANG)
    ),
)
