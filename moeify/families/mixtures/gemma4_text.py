"""The text model of ``gemma4`` alone, under a model type of its own."""

from moeify.families.mixtures.gemma4 import LAYOUT as LAYOUT
