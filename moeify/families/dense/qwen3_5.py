"""Qwen3.5 with its vision tower."""

from __future__ import annotations

from dataclasses import replace

from moeify.families import dense_names as names
from moeify.families.dense.qwen3_5_text import LAYOUT as TEXT

_PREFIX = "model.language_model."

LAYOUT = replace(
    TEXT,
    model_type="qwen3_5",
    prefixes=(_PREFIX, "language_model."),
    heads=names.seeing_heads(_PREFIX),
    towers=("model.visual.", "visual."),
)
