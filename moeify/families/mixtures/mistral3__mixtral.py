"""Mistral 3 around a Mixtral."""

from moeify.families.dense.mistral3__mistral import LAYOUT as DENSE
from moeify.families.mixtures.mixtral import LAYOUT as TEXT
from moeify.families.wrappers import WRAPPERS

LAYOUT = WRAPPERS["mistral3"].mixture(TEXT, DENSE)
