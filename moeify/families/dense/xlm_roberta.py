"""XLM-RoBERTa: RoBERTa's tensors under RoBERTa's names."""

from __future__ import annotations

from dataclasses import replace

from moeify.families.dense.roberta import LAYOUT as ROBERTA
from moeify.families.dense_names import encoder_dims

LAYOUT = replace(ROBERTA, model_type="xlm-roberta", class_prefix="XLMRoberta", dims=encoder_dims())
