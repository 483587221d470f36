"""Granite 4: attention and Mamba in turns, a shared expert beside GraniteMoE's."""

from __future__ import annotations

from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.mixtures.granitemoe import LAYOUT as GRANITEMOE
from moeify.families.moe_layout import Rest
from moeify.families.values import Config

_every = names.all_layers(32)


def _moe_layers(config: Config) -> tuple[int, ...]:
    return () if config.get("num_local_experts") == 0 else _every(config)


LAYOUT = replace(
    GRANITEMOE,
    model_type="granitemoehybrid",
    class_prefix="GraniteMoeHybrid",
    moe_layers=_moe_layers,
    rest=Rest(
        per_layer=(
            *names.LLAMA_BIASED,
            *names.mamba2("mamba"),
            "shared_mlp.input_linear.weight",
            "shared_mlp.output_linear.weight",
        )
    ),
)
