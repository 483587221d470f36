"""GPT-2 to moeify's own class."""

from moeify.families.dense.gpt2 import LAYOUT as DENSE
from moeify.families.mixtures.gpt2_moe import LAYOUT as MOE
from moeify.families.own import own_conversion

CONVERSIONS = (own_conversion(DENSE, MOE),)
