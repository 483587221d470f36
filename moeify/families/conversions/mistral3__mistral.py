"""Mistral 3 around a Mistral, to the same around a Mixtral, with its vision tower."""

from moeify.families.conversions.mistral import CONVERSIONS as TEXT
from moeify.families.dense.mistral3__mistral import LAYOUT as DENSE
from moeify.families.mixtures.mistral3__mixtral import LAYOUT as MOE
from moeify.families.wrappers import WRAPPERS

CONVERSIONS = (WRAPPERS["mistral3"].conversion(DENSE, MOE, TEXT[0]),)
