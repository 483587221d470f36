"""The text model of ``llama4`` alone, under a model type of its own."""

from moeify.families.mixtures.llama4 import LAYOUT as LAYOUT
