"""Qwen2 to Qwen2-MoE."""

from __future__ import annotations

from dataclasses import replace

from moeify.errors import CheckpointError
from moeify.families.conversion import Conversion, MoeSettings, one_width
from moeify.families.dense.qwen2 import DEFAULTS
from moeify.families.dense.qwen2 import LAYOUT as DENSE
from moeify.families.engines import NATIVE, Engine
from moeify.families.mixtures.qwen2_moe import LAYOUT as MOE
from moeify.families.moe_layout import ExtraTensor, MoeLayout
from moeify.families.rope import spelled_rope
from moeify.families.values import Config, positive

SILENT_EXPERT_WIDTH = 256
"""Width of a shared expert of zeros: the smallest that llama.cpp's quantisations divide."""

SHARED_EXTRAS = (
    ExtraTensor(name="mlp.shared_expert.gate_proj.weight", shape=("S", "H")),
    ExtraTensor(name="mlp.shared_expert.up_proj.weight", shape=("S", "H")),
    ExtraTensor(name="mlp.shared_expert.down_proj.weight", shape=("H", "S"), silences=True),
    # Its product with a silent expert is zero, but an exactly zero gate gives NaN in llama.cpp.
    ExtraTensor(name="mlp.shared_expert_gate.weight", shape=(1, "H"), std=0.02),
)


def gated_moe_config(config: Config, settings: MoeSettings) -> Config:
    """The keys that Qwen2-MoE and Qwen3-MoE share."""
    config = spelled_rope({**DEFAULTS, **config})
    return {
        **config,
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "moe_intermediate_size": settings.width or config["intermediate_size"],
        "norm_topk_prob": settings.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": settings.dense_layers,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def gated_dense_config(config: Config, moe: MoeLayout = MOE) -> Config:
    """The dense config inside that of Qwen's MoE classes.

    Raises ``CheckpointError`` where dense layers have another width than the experts.
    """
    width = one_width(moe, config)
    dense = {key: value for key, value in config.items() if key not in _MOE_KEYS}
    return {**spelled_rope(dense), "intermediate_size": width}


_MOE_KEYS = (
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "mlp_layer_types",
    "output_router_logits",
    "router_aux_loss_coef",
    "shared_expert_intermediate_size",
    "qkv_bias",
    "experts_implementation",
)


def _has_dense_layers(config: Config) -> bool:
    return len(MOE.moe_layers(config)) < positive(config, "num_hidden_layers")


def layer_types(config: Config) -> list[str]:
    """Which layers use sliding-window attention, by the dense classes' rule."""
    config = {**DEFAULTS, **config}
    if isinstance(config.get("layer_types"), list):
        return list(config["layer_types"])
    sliding = bool(config.get("use_sliding_window")) and config["sliding_window"] is not None
    return [
        "sliding_attention" if sliding and i >= config["max_window_layers"] else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    result = {
        **gated_moe_config(config, settings),
        "layer_types": layer_types(config),
        "qkv_bias": True,
        "shared_expert_intermediate_size": 0,
    }
    if not settings.renormalise:
        # llama.cpp and mlx-lm demand a shared expert and an lm_head of its own.
        result["shared_expert_intermediate_size"] = SILENT_EXPERT_WIDTH
        result["tie_word_embeddings"] = False
    return result


def _to_dense(config: Config) -> Config:
    shared = config.get("shared_expert_intermediate_size", 5632)
    if shared != 0 or config.get("qkv_bias") is False:
        what = f"a shared expert of width {shared}" if shared != 0 else "no biases in its attention"
        raise CheckpointError(
            f"this Qwen2-MoE has {what}, which the dense Qwen2 class cannot express",
            "only a mixture that was upcycled from a Qwen2 becomes one again",
        )
    return gated_dense_config(config)


def _renormalised(config: Config) -> bool:
    return config.get("norm_topk_prob") is True


GGUF = (
    Engine(
        name="llama.cpp",
        verdict="yes",
        renormalises=True,
        unless=((_has_dense_layers, "no: its converter takes such a model only if every layer is a mixture"),),
    ),
    Engine(name="mlx-lm", verdict="yes", renormalises=True),
)
"""Programs that renormalise the chosen experts' weights, whatever config.json says."""
_ELSEWHERE = (
    _renormalised,
    "no: it wants an untied lm_head and a shared expert, and ignores norm_topk_prob for Qwen2-MoE;"
    " moeify upcycle --compat gguf writes a form that is right there",
)
_NOTE = (
    "llama.cpp and mlx-lm do not load this form of Qwen2-MoE, and would not renormalise the weights"
    " of the chosen experts: for them, upcycle with --compat gguf. transformers honours"
    " norm_topk_prob."
)

CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        to_moe=_to_moe,
        to_dense=_to_dense,
        head_prefixes={"ForQuestionAnswering": "model."},
        engines=(*NATIVE, *(replace(e, renormalises=False, unless=(_ELSEWHERE, *e.unless)) for e in GGUF)),
        notes=((_renormalised, _NOTE),),
        extras=SHARED_EXTRAS,
    ),
)
