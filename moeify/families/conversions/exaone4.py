"""EXAONE 4 to moeify's own class."""

from moeify.families.dense.exaone4 import LAYOUT as DENSE
from moeify.families.mixtures.exaone4_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE),)
