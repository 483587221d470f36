"""Mistral to Mixtral, with its window."""

from moeify.families.conversions.llama import mixtral_conversion
from moeify.families.dense.mistral import LAYOUT as DENSE

CONVERSIONS = (mixtral_conversion(DENSE, windows=True),)
