"""Qwen3.5-MoE with its vision tower."""

from dataclasses import replace

from moeify.families.dense.qwen3_5 import LAYOUT as DENSE
from moeify.families.mixtures.qwen3_5_moe_text import LAYOUT as TEXT
from moeify.families.moe_names import SHARED_EXPERT

LAYOUT = replace(
    TEXT,
    model_type="qwen3_5_moe",
    prefixes=(*DENSE.prefixes, "model."),
    rest=replace(DENSE.rest(SHARED_EXPERT), ffn=()),
)
