"""Gemma 2 to moeify's own class."""

from moeify.families.dense.gemma2 import LAYOUT as DENSE
from moeify.families.mixtures.gemma2_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE),)
