"""Qwen3.5 with its vision tower."""

from __future__ import annotations

from dataclasses import replace

from moeify.families.base import Head
from moeify.families.dense.qwen3_5_text import LAYOUT as TEXT

_LM = TEXT.heads["ForCausalLM"]
_PREFIX = "model.language_model."

LAYOUT = replace(
    TEXT,
    model_type="qwen3_5",
    prefixes=(_PREFIX, "language_model."),
    heads={
        "Model": Head(prefix="language_model."),
        "ForConditionalGeneration": replace(
            _LM, prefix=_PREFIX, tied={"lm_head.weight": f"{_PREFIX}embed_tokens.weight"}
        ),
    },
    towers=("model.visual.", "visual."),
)
