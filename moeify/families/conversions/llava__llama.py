"""LLaVA around a Llama, to the same around a Mixtral, with its vision tower."""

from moeify.families.conversions.llama import CONVERSIONS as TEXT
from moeify.families.dense.llava__llama import LAYOUT as DENSE
from moeify.families.mixtures.llava__mixtral import LAYOUT as MOE
from moeify.families.wrappers import WRAPPERS

CONVERSIONS = (WRAPPERS["llava"].conversion(DENSE, MOE, TEXT[0]),)
