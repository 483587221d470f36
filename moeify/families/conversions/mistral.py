"""Mistral to Mixtral, with its window, and to moeify's own class."""

from moeify.families.conversions.llama import mixtral_conversion
from moeify.families.dense.mistral import LAYOUT as DENSE
from moeify.families.mixtures.mistral_moe import LAYOUT as OWN
from moeify.families.own import own_conversion

CONVERSIONS = (mixtral_conversion(DENSE, windows=True), own_conversion(DENSE, OWN))
