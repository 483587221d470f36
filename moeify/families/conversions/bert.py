"""BERT to BERT-MoE."""

from moeify.families.conversion import own_conversion
from moeify.families.dense.bert import LAYOUT as DENSE
from moeify.families.mixtures.bert_moe import LAYOUT as MOE

CONVERSIONS = (own_conversion(DENSE, MOE),)
