"""Qwen2 as a mixture in moeify's own class, beside transformers' qwen2_moe."""

from moeify.families.dense.qwen2 import LAYOUT as DENSE
from moeify.families.own import own_mixture

LAYOUT = own_mixture(DENSE)
