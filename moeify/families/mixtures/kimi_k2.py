"""Kimi K2: DeepSeek-V3 under a model type of its own, whose code transformers does not have."""

from dataclasses import replace

from moeify.families.mixtures.deepseek_v3 import LAYOUT as DEEPSEEK_V3

LAYOUT = replace(DEEPSEEK_V3, model_type="kimi_k2", loads_as="deepseek_v3")
