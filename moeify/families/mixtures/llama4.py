"""Llama 4, with or without its vision tower."""

from __future__ import annotations

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.values import Config, positive, text_config


def _llama4_layers(config: Config) -> tuple[int, ...]:
    config = text_config(config)
    listed = config.get("moe_layers")
    if isinstance(listed, list):
        return tuple(listed)
    step = positive(config, "interleave_moe_layer_step", 1)
    return tuple(range(step - 1, positive(config, "num_hidden_layers", 48), step))


LAYOUT = MoeLayout(
    model_type="llama4",
    class_prefix="Llama4",
    prefixes=("language_model.model.", "model."),
    router="feed_forward.router.weight",
    experts=names.fused_experts(
        "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj", transposed=True
    ),
    dims=names.decoder_dims("intermediate_size", layers=48, hidden=5120, width=8192, vocab=202048),
    moe_layers=_llama4_layers,
    num_experts_keys=names.LOCAL_KEYS,
    rule=RouterRule(scores="sigmoid", norm_default=False, weighs_inputs=True),
    rest=Rest(
        per_layer=names.LLAMA_BIASED,
        ffn=names.gated("feed_forward"),
        shared=names.gated("feed_forward.shared_expert"),
        towers=("vision_model.", "multi_modal_projector."),
    ),
)
