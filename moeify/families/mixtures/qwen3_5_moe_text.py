"""The text model of Qwen3.5-MoE alone."""

from __future__ import annotations

from dataclasses import replace

from moeify.families import moe_names as names
from moeify.families.dense.qwen3_5_text import LAYOUT as DENSE
from moeify.families.moe_layout import MoeLayout
from moeify.families.values import Config, Dims, positive, text_config

_DIMS = names.decoder_dims("moe_intermediate_size", layers=40, hidden=2048, width=512, vocab=248320)


def _dims(config: Config) -> Dims:
    return {**_DIMS(config), "S": positive(text_config(config), "shared_expert_intermediate_size", 512)}


LAYOUT = MoeLayout(
    model_type="qwen3_5_moe_text",
    class_prefix="Qwen3_5Moe",
    experts=names.single_experts("mlp"),
    dims=_dims,
    moe_layers=names.all_layers(40),
    norm_offset=1.0,
    rest=replace(DENSE.rest(names.SHARED_EXPERT), ffn=()),
)
