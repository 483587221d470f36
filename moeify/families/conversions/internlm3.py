"""InternLM3 to Mixtral."""

from moeify.families.conversions.llama import mixtral_conversion
from moeify.families.dense.internlm3 import LAYOUT as DENSE

CONVERSIONS = (mixtral_conversion(DENSE),)
