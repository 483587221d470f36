"""The text model of Qwen3.5 to that of Qwen3.5-MoE, whose shared expert is silent."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, dense_again
from moeify.families.conversions.qwen2 import SHARED_EXTRAS, SILENT_EXPERT_WIDTH
from moeify.families.dense.qwen3_5_text import LAYOUT as DENSE
from moeify.families.dense.qwen3_5_text import layer_kinds
from moeify.families.engines import MLX, SGLANG, TRANSFORMERS, Engine
from moeify.families.mixtures.qwen3_5_moe_text import LAYOUT as MOE
from moeify.families.rope import spelled_rope
from moeify.families.values import Config, positive

_MOE = {
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "vocab_size": 248320,
    "partial_rotary_factor": 0.25,
}
"""What Qwen3_5MoeTextConfig assumes where config.json is silent, and Qwen3_5TextConfig otherwise."""
_KEYS = (
    "num_experts",
    "num_local_experts",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "norm_topk_prob",
)


def text_to_moe(text: Config, settings: MoeSettings) -> Config:
    """The text part of the mixture's config."""
    return {
        **spelled_rope(text),
        "layer_types": layer_kinds(text),
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "moe_intermediate_size": settings.width or text["intermediate_size"],
        "shared_expert_intermediate_size": SILENT_EXPERT_WIDTH,
        "norm_topk_prob": True,  # of which the class here does not ask, but those of others do
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def text_to_dense(text: Config) -> Config:
    """The text part of the dense config."""
    dense = dense_again(*_KEYS, defaults=_MOE)(text)
    width = positive({**_MOE, **text}, "moe_intermediate_size")
    return {**dense, "layer_types": layer_kinds({**_MOE, **text}), "intermediate_size": width}


ENGINES = (
    TRANSFORMERS,
    Engine(name="vLLM", verdict="yes, with text in bfloat16 (0.32, on the CPU, by hand); not run on GPUs"),
    SGLANG,
    Engine(name="llama.cpp", verdict="its converter knows the class; not run by moeify"),
    MLX,
)

CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        fused=True,
        to_moe=text_to_moe,
        to_dense=text_to_dense,
        engines=ENGINES,
        extras=SHARED_EXTRAS,
    ),
)
