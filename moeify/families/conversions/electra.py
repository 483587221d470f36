"""ELECTRA to moeify's own class."""

from moeify.families.dense.electra import LAYOUT as DENSE
from moeify.families.mixtures.electra_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE, pooled=True),)
