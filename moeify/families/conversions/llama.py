"""Llama to Mixtral, and what this has in common for every type that is a Llama inside."""

from __future__ import annotations

from moeify.errors import CheckpointError, ConfigError
from moeify.families.base import DenseLayout
from moeify.families.conversion import Conversion, MoeSettings, dense_again
from moeify.families.dense.llama import DEFAULTS
from moeify.families.dense.llama import LAYOUT as DENSE
from moeify.families.engines import MLX, SGLANG, TRANSFORMERS, VLLM, Engine, Said, Test
from moeify.families.grouped import glm4_conversion
from moeify.families.mixtures.llama_moe import LAYOUT as OWN
from moeify.families.mixtures.mixtral import DEFAULTS as MIXTRAL
from moeify.families.mixtures.mixtral import LAYOUT as MOE
from moeify.families.own import own_conversion
from moeify.families.rope import rope, spelled_rope
from moeify.families.values import Config, positive

_MOE_KEYS = ("num_local_experts", "num_experts", "router_jitter_noise")
_BIASES = ("attention_bias", "mlp_bias")


def head_dim(config: Config) -> int:
    """Width of a head, which config.json may leave to hidden_size."""
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    return positive(config, "head_dim", hidden // heads)


def _check(config: Config, model_type: str) -> None:
    """Raise ``ConfigError`` for what Mixtral has no place for: it would compute something else."""
    if biased := [key for key in _BIASES if config.get(key)]:
        raise ConfigError(
            f"this {model_type} has biases ({biased[0]} is true), which Mixtral has no place for",
            "upcycle a checkpoint without biases",
        )
    part = rope(config).get("partial_rotary_factor", 1.0)
    if part != 1.0:
        raise ConfigError(
            f"this {model_type} rotates a part of each head (partial_rotary_factor is {part}), and Mixtral rotates"
            " them whole",
            "upcycle a checkpoint whose heads are rotated whole",
        )
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(set(map(str, kinds))) > 1:
        raise ConfigError(
            f"this {model_type} mixes layers with and without a window (layer_types), and Mixtral has one window for"
            " all layers",
            "upcycle a checkpoint whose layers are all of one kind",
        )


def _to_mixtral(config: Config, settings: MoeSettings, windows: bool, model_type: str) -> Config:
    config = spelled_rope(config)
    _check(config, model_type)
    return {
        **config,
        "head_dim": head_dim(config),
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "intermediate_size": settings.width or config["intermediate_size"],
        "num_local_experts": settings.num_experts,
        "num_experts_per_tok": settings.top_k,
        "sliding_window": config.get("sliding_window") if windows else None,  # Llama's class does not read it
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def has_window(config: Config) -> bool:
    """Whether attention sees no further than a window."""
    return config.get("sliding_window") is not None


def _from_mixtral(config: Config, windows: bool, model_type: str) -> Config:
    if has_window(config) and not windows:
        raise CheckpointError(
            f"this Mixtral has a window of {config['sliding_window']!r}, which {model_type} has not",
            "only a mixture that was upcycled from such a checkpoint becomes one again",
        )
    dense = dense_again(*_MOE_KEYS, defaults=MIXTRAL)(config)
    dense["head_dim"] = head_dim(dense)
    if windows:
        return {**dense, "sliding_window": config.get("sliding_window")}
    return {key: value for key, value in dense.items() if key != "sliding_window"}


def _scales_rope(config: Config) -> bool:
    return bool(rope(config).get("rope_type", "default") != "default")


def _odd_heads(config: Config) -> bool:
    hidden, heads = (int(config.get(key) or MIXTRAL[key]) for key in ("hidden_size", "num_attention_heads"))
    return head_dim({**MIXTRAL, **config}) != hidden // heads


def _unless(says: str, *tests: tuple[Test, str]) -> Said:
    return tuple((test, f"no: {says} {what}") for test, what in tests)


_WINDOW, _ROPE = (has_window, "the window of its attention"), (_scales_rope, "the scaling of its rotary positions")
_HEADS = (_odd_heads, "head_dim, which is not hidden_size / num_attention_heads")
ENGINES = (
    TRANSFORMERS,
    VLLM,
    SGLANG.but(*_unless("its class ignores", _HEADS, _ROPE, _WINDOW)),
    Engine(name="llama.cpp", verdict="yes", unless=_unless("it ignores", _WINDOW)),
    MLX.but(*_unless("its class ignores", _HEADS, _ROPE, _WINDOW)),
)
"""What became of Mixtral in each."""


def mixtral_conversion(dense: DenseLayout, *, windows: bool = False, notes: Said = ()) -> Conversion:
    """To Mixtral, from a type that is a Llama inside; ``windows`` says whether it may have one."""
    model_type = dense.model_type
    return Conversion(
        dense=dense,
        moe=MOE,
        to_moe=lambda config, settings: _to_mixtral(config, settings, windows, model_type),
        to_dense=lambda config: _from_mixtral(config, windows, model_type),
        came_from=lambda config: windows or not has_window(config),
        head_prefixes={"ForQuestionAnswering": "model."},
        engines=ENGINES,
        notes=notes,
    )


CONVERSIONS = (mixtral_conversion(DENSE), own_conversion(DENSE, OWN), glm4_conversion(DENSE, DEFAULTS))
