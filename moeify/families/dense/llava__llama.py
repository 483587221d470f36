"""LLaVA around a Llama."""

from moeify.families.dense.llama import LAYOUT as TEXT
from moeify.families.wrappers import WRAPPERS

LAYOUT = WRAPPERS["llava"].dense(TEXT)
