"""Jamba, whose layers alternate between attention and Mamba."""

from __future__ import annotations

from moeify.families import moe_names as names
from moeify.families.moe_layout import MoeLayout, Rest, RouterRule
from moeify.families.values import Config, positive


def _jamba_layers(config: Config) -> tuple[int, ...]:
    step = positive(config, "expert_layer_period", 2)
    offset = config.get("expert_layer_offset", 1)
    total = positive(config, "num_hidden_layers", 32)
    mixture = positive(config, "num_experts", 16) > 1
    return tuple(i for i in range(total) if mixture and i % step == offset)


LAYOUT = MoeLayout(
    model_type="jamba",
    class_prefix="Jamba",
    router="feed_forward.router.weight",
    experts=names.single_experts("feed_forward"),
    norm="pre_ff_layernorm.weight",
    dims=names.decoder_dims("intermediate_size", layers=32, hidden=4096, width=14336, vocab=65536),
    moe_layers=_jamba_layers,
    num_experts_keys=("num_experts", "num_local_experts"),
    rule=RouterRule(norm_default=False),
    rest=Rest(
        outer=("embed_tokens.weight", "final_layernorm.weight"),
        per_layer=(
            "input_layernorm.weight",
            "pre_ff_layernorm.weight",
            *names.ATTENTION,
            "mamba.A_log",
            "mamba.D",
            *(f"mamba.{part}_layernorm.weight" for part in ("b", "c", "dt")),
            *(f"mamba.{part}.weight" for part in ("conv1d", "dt_proj", "in_proj", "out_proj", "x_proj")),
            *(f"mamba.{part}.bias" for part in ("conv1d", "dt_proj", "in_proj", "out_proj")),
        ),
        ffn=names.gated("feed_forward"),
    ),
)
