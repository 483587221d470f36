"""SmolLM3 to moeify's own class."""

from moeify.families.dense.smollm3 import LAYOUT as DENSE
from moeify.families.mixtures.smollm3_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE),)
