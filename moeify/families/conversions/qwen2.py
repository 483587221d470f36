"""Qwen2 to Qwen2-MoE."""

from __future__ import annotations

from moeify.errors import CheckpointError
from moeify.families.conversion import Conversion, MoeSettings, one_width
from moeify.families.dense.qwen2 import DEFAULTS
from moeify.families.dense.qwen2 import LAYOUT as DENSE
from moeify.families.engines import MLX, NATIVE_RUN, RUN, Engine, has_empty_shared_expert, wants_head
from moeify.families.grouped import glm4_conversion
from moeify.families.mixtures.qwen2_moe import LAYOUT as MOE
from moeify.families.mixtures.qwen2_own_moe import LAYOUT as OWN
from moeify.families.moe_layout import ExtraTensor, MoeLayout
from moeify.families.own import own_conversion
from moeify.families.rope import spelled_rope
from moeify.families.values import Config, positive

SILENT_EXPERT_WIDTH = 256
"""Width of a shared expert of zeros: engines have no place for one without neurons, and 256 is the
smallest that llama.cpp's quantisations divide."""

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
    return {
        **gated_moe_config(config, settings),
        "layer_types": layer_types(config),
        "qkv_bias": True,
        "shared_expert_intermediate_size": SILENT_EXPERT_WIDTH,
    }


def _to_dense(config: Config) -> Config:
    if config.get("qkv_bias") is False:
        raise CheckpointError(
            "this Qwen2-MoE has no biases in its attention, which the dense Qwen2 class cannot express",
            "only a mixture that was upcycled from a Qwen2 becomes one again",
        )
    return gated_dense_config(config)


def _renormalised(config: Config) -> bool:
    return config.get("norm_topk_prob") is True


_DENSE_LAYERS = (_has_dense_layers, "no: its converter takes such a model only if every layer is a mixture")
GGUF = (Engine(name="llama.cpp", verdict=RUN, unless=(_DENSE_LAYERS,)), MLX)
"""For Qwen3-MoE: they divide the chosen experts' weights by their sum, whatever config.json says."""
_UNRIGHT = (
    (
        _renormalised,
        "no: it ignores norm_topk_prob for Qwen2-MoE; `moeify upcycle --for {}` writes a form that is right there",
    ),
    (has_empty_shared_expert, "no: it wants a shared expert; `moeify upcycle --for {}` writes one"),
)
_NOTE = (
    "llama.cpp and mlx-lm would not divide the weights of the chosen experts by their sum, whatever"
    " norm_topk_prob says, and give other tokens: for them, upcycle with --for llama.cpp,mlx-lm."
)


def _unless(engine: Engine) -> Engine:
    return engine.but(*((test, text.format(engine.name)) for test, text in _UNRIGHT), wants_head(engine.name))


CONVERSIONS = (
    Conversion(
        dense=DENSE,
        moe=MOE,
        to_moe=_to_moe,
        to_dense=_to_dense,
        head_prefixes={"ForQuestionAnswering": "model."},
        engines=(*NATIVE_RUN, *map(_unless, GGUF)),
        notes=((_renormalised, _NOTE),),
        extras=SHARED_EXTRAS,
    ),
    own_conversion(DENSE, OWN),
    glm4_conversion(DENSE, DEFAULTS, biases=True, kinds=layer_types),
)
