"""CamemBERT: RoBERTa's tensors under RoBERTa's names."""

from __future__ import annotations

from dataclasses import replace

from moeify.families.dense.roberta import LAYOUT as ROBERTA
from moeify.families.dense_names import encoder_dims

LAYOUT = replace(ROBERTA, model_type="camembert", class_prefix="Camembert", dims=encoder_dims())
