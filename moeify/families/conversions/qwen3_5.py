"""Qwen3.5 to Qwen3.5-MoE, with its vision tower."""

from __future__ import annotations

from moeify.families.conversion import Conversion, MoeSettings, towered
from moeify.families.conversions.qwen2 import SHARED_EXTRAS
from moeify.families.conversions.qwen3_5_text import ENGINES, text_to_dense, text_to_moe
from moeify.families.dense.qwen3_5 import LAYOUT as DENSE
from moeify.families.mixtures.qwen3_5_moe import LAYOUT as MOE
from moeify.families.values import Config


def _to_moe(config: Config, settings: MoeSettings) -> Config:
    return towered(config, "qwen3_5_moe", lambda text: text_to_moe(text, settings))


def _to_dense(config: Config) -> Config:
    return towered(config, "qwen3_5", text_to_dense)


CONVERSIONS = (
    Conversion(
        dense=DENSE, moe=MOE, fused=True, to_moe=_to_moe, to_dense=_to_dense, engines=ENGINES, extras=SHARED_EXTRAS
    ),
)
