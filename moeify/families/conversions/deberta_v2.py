"""DeBERTa-v2 to moeify's own class."""

from moeify.families.dense.deberta_v2 import LAYOUT as DENSE
from moeify.families.mixtures.deberta_v2_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE),)
