"""Qwen3 as a mixture in moeify's own class, beside transformers' qwen3_moe."""

from moeify.families.dense.qwen3 import LAYOUT as DENSE
from moeify.families.own import own_mixture

LAYOUT = own_mixture(DENSE)
