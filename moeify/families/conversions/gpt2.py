"""GPT-2 to GPT-2-MoE."""

from __future__ import annotations

from moeify.families.conversion import own_conversion
from moeify.families.dense.gpt2 import LAYOUT as DENSE
from moeify.families.mixtures.gpt2_moe import LAYOUT as MOE

__all__ = ["CONVERSIONS"]

CONVERSIONS = (own_conversion(DENSE, MOE),)
