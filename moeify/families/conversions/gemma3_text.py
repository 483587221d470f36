"""The text model of Gemma 3 to moeify's own class."""

from moeify.families.dense.gemma3_text import LAYOUT as DENSE
from moeify.families.mixtures.gemma3_text_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE),)
