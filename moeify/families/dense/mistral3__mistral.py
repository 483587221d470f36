"""Mistral 3 around a Mistral."""

from moeify.families.dense.mistral import LAYOUT as TEXT
from moeify.families.wrappers import WRAPPERS

LAYOUT = WRAPPERS["mistral3"].dense(TEXT)
