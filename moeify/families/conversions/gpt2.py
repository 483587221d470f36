"""GPT-2 to GPT-2-MoE."""

from moeify.families.conversion import own_conversion
from moeify.families.dense.gpt2 import LAYOUT as DENSE
from moeify.families.mixtures.gpt2_moe import LAYOUT as MOE

CONVERSIONS = (own_conversion(DENSE, MOE),)
