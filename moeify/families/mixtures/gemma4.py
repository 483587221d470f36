"""Gemma 4's mixtures, with or without their towers: experts beside a dense FFN in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest
from moeify.families.values import Config, text_config

_LAYERS = 30
_dims = names.decoder_dims("moe_intermediate_size", layers=_LAYERS, hidden=2304, width=704, vocab=262144)
_every = names.all_layers(_LAYERS)
_PER_LAYER_INPUTS = (
    "embed_tokens_per_layer.weight",
    "per_layer_model_projection.weight",
    "per_layer_projection_norm.weight",
)


def _moe_layers(config: Config) -> tuple[int, ...]:
    return _every(config) if text_config(config).get("enable_moe_block") else ()


def _kinds(config: Config) -> Sequence[str]:
    """Windows or not, and whether keys and values are those of a layer before."""
    text, count = text_config(config), _dims(config)["L"]
    kinds, own = text.get("layer_types"), count - (text.get("num_kv_shared_layers") or 0)
    if not isinstance(kinds, list):
        kinds = ["full" if (layer + 1) % 6 == 0 or layer + 1 == count else "sliding" for layer in range(count)]
    return [f"{kind} {layer < own}" for layer, kind in enumerate(kinds)]


LAYOUT = MoeLayout(
    model_type="gemma4",
    class_prefix="Gemma4",
    prefixes=("model.language_model.", "model."),
    router="router.proj.weight",
    chooser="router",
    scales=("router.per_expert_scale",),
    own_inputs=True,
    experts=names.fused_experts("experts.gate_up_proj", "experts.down_proj"),
    norm=None,
    dims=_dims,
    kinds=_kinds,
    moe_layers=_moe_layers,
    top_k_keys=("top_k_experts",),
    rest=Rest(
        outer=("embed_tokens.weight", "norm.weight", *_PER_LAYER_INPUTS),
        optional=frozenset(_PER_LAYER_INPUTS),
        per_layer=(
            *names.LLAMA_BIASED,
            *names.QK_NORMS,
            *(f"{place}_feedforward_layernorm.weight" for place in ("pre", "post")),
            *(f"{place}_feedforward_layernorm_{n}.weight" for place, n in (("post", 1), ("post", 2), ("pre", 2))),
            "router.scale",
            "per_layer_input_gate.weight",
            "per_layer_projection.weight",
            "post_per_layer_input_norm.weight",
        ),
        ffn=names.FFN,
        shared=names.FFN,
        ties_by_default=True,
        towers=("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio."),
        buffers=(".rotary_emb.inv_freq", ".layer_scalar"),
    ),
)
