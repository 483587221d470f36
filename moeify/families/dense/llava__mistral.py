"""LLaVA around a Mistral."""

from moeify.families.dense.mistral import LAYOUT as TEXT
from moeify.families.wrappers import WRAPPERS

LAYOUT = WRAPPERS["llava"].dense(TEXT)
