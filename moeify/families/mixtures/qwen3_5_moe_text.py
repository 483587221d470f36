"""The text model of ``qwen3_5_moe`` alone, under a model type of its own."""

from moeify.families.mixtures.qwen3_5_moe import LAYOUT as LAYOUT
