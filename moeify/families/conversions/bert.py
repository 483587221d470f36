"""BERT to BERT-MoE."""

from __future__ import annotations

from moeify.families.conversion import own_conversion
from moeify.families.dense.bert import LAYOUT as DENSE
from moeify.families.mixtures.bert_moe import LAYOUT as MOE

__all__ = ["CONVERSIONS"]

CONVERSIONS = (own_conversion(DENSE, MOE),)
