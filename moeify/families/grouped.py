"""Mixtures whose groups of experts are copies of a dense network in slices: GLM-4-MoE and dots1."""

from __future__ import annotations

from collections.abc import Callable

from moeify.errors import CheckpointError, ConfigError
from moeify.families.base import DenseLayout
from moeify.families.conversion import Conversion, MoeSettings
from moeify.families.engines import MLX, SGLANG, TRANSFORMERS, VLLM, VLLM_GENERIC, Engine, wants_head
from moeify.families.mixtures.dots1 import LAYOUT as DOTS1
from moeify.families.mixtures.glm4_moe import LAYOUT as GLM4
from moeify.families.moe_layout import ExtraTensor, MoeLayout
from moeify.families.numbering import SHARED_KEY, SLICES_KEY
from moeify.families.rope import rope, spelled_rope
from moeify.families.values import Config, positive

_KEYS = (
    SLICES_KEY,
    SHARED_KEY,
    "n_routed_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "norm_topk_prob",
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "use_qk_norm",
    "output_router_logits",
    "experts_implementation",
)
_CHOOSING = ExtraTensor(name="mlp.gate.e_score_correction_bias", shape=("E",), dtype="F32")


def _counts(moe: MoeLayout, config: Config, settings: MoeSettings) -> Config:
    """The mixture's keys. Weights of chosen experts sum to 1, of which each slice of a copy has its part: the scale
    gives every slice a sum of 1 again."""
    rule, slices = moe.rule, settings.slices
    groups = rule.counts(settings.num_experts, settings.top_k, slices)
    return {
        "n_routed_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "moe_intermediate_size": settings.width or config["intermediate_size"],
        "n_shared_experts": max(settings.shared, 1),  # engines have no place for none
        "first_k_dense_replace": settings.moe_layers[0],
        "n_group": 1,
        "topk_group": 1,
        **groups,
        "routed_scaling_factor": float(slices),
        "norm_topk_prob": True,
        "output_router_logits": False,
        **({SLICES_KEY: slices} if slices > 1 else {}),
        **({SHARED_KEY: settings.shared} if settings.shared else {}),
    }


def _whole_width(moe: MoeLayout, config: Config) -> int:
    """Width of the network that a copy makes; raises ``CheckpointError`` for experts that are no slices of one."""
    width, slices = positive(config, "moe_intermediate_size"), moe.rule.slices(config)
    whole, dense = width * (slices + moe.rule.shared_slices(config)), config.get("intermediate_size")
    if whole != dense:
        raise CheckpointError(
            f"the experts of a copy have {whole} neurons together and config.json says {dense} of a dense layer",
            _ONLY_OURS,
        )
    return whole


def _refuse(said: bool, what: str, moe: MoeLayout) -> None:
    if said:
        raise ConfigError(f"this checkpoint has {what}, which {moe.model_type} has no place for", "leave --arch out")


def _no_kinds(config: Config) -> list[str]:
    return []


def glm4_conversion(
    dense: DenseLayout,
    defaults: Config,
    *,
    head_dim: int | None = None,
    qk_norm: bool = False,
    biases: bool = False,
    kinds: Callable[[Config], list[str]] = _no_kinds,
) -> Conversion:
    """To GLM-4-MoE, from a gated decoder with the norms of Llama.

    ``defaults`` are what the dense class assumes, ``head_dim`` its width of a head. It has ``qk_norm`` on queries and
    keys, or ``biases`` in their projections; ``kinds`` gives the kinds of its attention layers.
    """
    unlike = () if biases else ("attention_bias", "mlp_bias")

    def to_moe(config: Config, settings: MoeSettings) -> Config:
        config = {**defaults, **config}
        _refuse("sliding_attention" in kinds(config), "windows in its attention", GLM4)
        _refuse(any(config.get(key) for key in unlike), "biases in its layers", GLM4)
        _refuse(rope(config).get("partial_rotary_factor", 1.0) != 1.0, "rotary positions in a part of each head", GLM4)
        plain = {key: value for key, value in config.items() if key not in ("layer_types", "mlp_bias")}
        windows = {key: None for key in ("sliding_window",) if key in config}
        return {
            **_WANTED,
            **spelled_rope({**plain, "partial_rotary_factor": 1.0}),
            **windows,
            **_heads(config, head_dim),
            "attention_bias": biases,
            "use_qk_norm": qk_norm,
            "num_nextn_predict_layers": 0,
            **_counts(GLM4, config, settings),
        }

    def to_dense(config: Config) -> Config:
        found = _dense(GLM4, {**_GLM4, **config})
        if rope(found).get("partial_rotary_factor", 0.5) != 1.0:
            raise CheckpointError(
                f"this mixture rotates a part of each head, which {dense.model_type} cannot express", _ONLY_OURS
            )
        if biases:
            found.pop("attention_bias", None)
        kept = {key: value for key, value in rope(found).items() if key != "partial_rotary_factor"}
        found.pop("partial_rotary_factor", None)
        return spelled_rope({**found, "rope_parameters": kept, "rope_scaling": None})

    return Conversion(
        dense=dense,
        moe=GLM4,
        to_moe=to_moe,
        to_dense=to_dense,
        came_from=lambda config: (
            (bool(config.get("use_qk_norm")), bool(config.get("attention_bias"))) == (qk_norm, biases)
        ),
        heads=("Model", "ForCausalLM"),
        extras=(_CHOOSING,),
        engines=(
            TRANSFORMERS,
            VLLM.but(wants_head(VLLM.name)),
            SGLANG,
            MLX.but(_SCALED, wants_head(MLX.name)),
            _NO_TOKENIZER,
        ),
    )


def dots1_conversion(
    dense: DenseLayout, defaults: Config, *, head_dim: int, kinds: Callable[[Config], list[str]]
) -> Conversion:
    """To dots1, from a Qwen3, whose attention it has."""

    def to_moe(config: Config, settings: MoeSettings) -> Config:
        config, found = {**defaults, **config}, kinds(config)
        return {
            **spelled_rope(config),
            **_heads(config, head_dim),
            "layer_types": found,
            "sliding_window": config.get("sliding_window") if "sliding_attention" in found else None,
            **_counts(DOTS1, config, settings),
        }

    def to_dense(config: Config) -> Config:
        found = _dense(DOTS1, {**_DOTS1, **config})
        windows = "sliding_attention" in (found.get("layer_types") or [])
        return spelled_rope({**found, "use_sliding_window": windows})

    return Conversion(
        dense=dense,
        moe=DOTS1,
        to_moe=to_moe,
        to_dense=to_dense,
        heads=("Model", "ForCausalLM"),
        extras=(_CHOOSING,),
        engines=(TRANSFORMERS, VLLM_GENERIC, SGLANG, MLX.but(_WINDOWED, _BIASED), _NO_GROUPS),
    )


def _heads(config: Config, head_dim: int | None) -> Config:
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    return {
        "head_dim": config.get("head_dim") or head_dim or hidden // heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
    }


def _dense(moe: MoeLayout, config: Config) -> Config:
    """``config`` without the mixture's keys, with the width of the whole network."""
    whole = _whole_width(moe, config)
    return {**{key: value for key, value in config.items() if key not in _KEYS}, "intermediate_size": whole}


def _scales_rope(config: Config) -> bool:
    return bool(rope(config).get("rope_type", "default") != "default")


_ONLY_OURS = "only a mixture that was upcycled from a dense model becomes one again"
_WINDOWED = (lambda config: "sliding_attention" in (config.get("layer_types") or []), "no: its class has no windows")
_BIASED = (lambda config: bool(config.get("attention_bias")), "no: its class has no biases in attention")
_SCALED = (_scales_rope, "no: its class ignores the scaling of rotary positions")
_NO_TOKENIZER = Engine(name="llama.cpp", verdict="no: its converter wants GLM's own tokenizer")
_NO_GROUPS = Engine(name="llama.cpp", verdict="no: it refuses dots1 with fewer heads of keys than of queries")
_WANTED = {"rope_scaling": None, "tie_word_embeddings": False}
"""What mlx-lm does not run without."""
_GLM4 = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1408,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
"""What Glm4MoeConfig assumes where config.json is silent, and dense classes otherwise."""
_DOTS1 = {
    "vocab_size": 152064,
    "hidden_size": 4608,
    "intermediate_size": 10944,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "moe_intermediate_size": 1408,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "max_window_layers": 62,
    "tie_word_embeddings": False,
}
"""The same of Dots1Config."""
